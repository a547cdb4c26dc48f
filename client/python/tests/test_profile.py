"""Profiles without a model: moments and basis against plain formulas, the file, the codec."""

import dataclasses

import numpy as np
import pytest

import dynacompress
from dynacompress import _core
from dynacompress.profile import make, moments, profile_file, sensitivity
from dynacompress.profile.model import Capture, window_firsts

D, HEADS, GROUP = 32, 2, 3
ROPE = dynacompress.Rope("half", [float(100.0 ** (-2 * i / D)) for i in range(D // 2)])
LAYER = dynacompress.Layer(HEADS, D, q_heads=HEADS * GROUP, max_position=1024)
SPEC = dynacompress.ContextSpec("tiny", [LAYER] * 2, dtype="f16", ropes=[ROPE])


def _capture(seed: int, tokens: int = 512) -> Capture:
    """K with a falling spectrum before RoPE, queries that look at its first channels."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    turn = moments.Turn(ROPE, D)
    firsts = np.array(window_firsts(tokens))
    fall = 0.8 ** np.arange(D)
    k, v, queries = [], [], []
    for _ in SPEC.layers:
        x = rng.standard_normal((HEADS, tokens, D)) * fall + 0.3
        k.append(turn(x, np.broadcast_to(np.arange(tokens), x.shape[:2])).astype(np.float16))
        v.append(rng.standard_normal((HEADS, tokens, D)).astype(np.float16))
        at = firsts[:, None, None] + np.arange(64)[:, None]
        q = rng.standard_normal((len(firsts), 64, HEADS * GROUP, D)) * fall
        queries.append(turn(q, np.broadcast_to(at, q.shape[:3])).astype(np.float16))
    return Capture(k, v, queries, firsts)


class _Model:
    """Stands for a model whose answer depends on K and V of each layer alike."""

    spec = SPEC
    digest = "0"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def capture(self, tokens: list[int]) -> Capture:
        return _capture(len(tokens), len(tokens))

    def go_on(self, capture: Capture, tokens: list[int]) -> "_Continuation":
        return _Continuation(capture)


class _Continuation:
    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self.log_p = self._answer(capture.k, capture.v)

    def again(self, layer: int, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        ks, vs = list(self._capture.k), list(self._capture.v)
        ks[layer], vs[layer] = k, v
        return self._answer(ks, vs)

    def _answer(self, ks: list[np.ndarray], vs: list[np.ndarray]) -> np.ndarray:
        logits = sum(k.astype(np.float64).sum(0) + 2 * v.astype(np.float64).sum(0)
                     for k, v in zip(ks, vs))[:40]  # fmt: skip
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        return logits.astype(np.float32)


def test_averages_over_distances_are_sums_of_rotations() -> None:
    rng = np.random.default_rng(1)
    turn, reach = moments.Turn(ROPE, D), 96
    q = rng.standard_normal((400, D))
    m = q.T @ q / len(q)
    plain = np.zeros((D, D))
    for distance in range(reach):
        r = turn(np.eye(D), np.full(D, distance))  # rows are R e_i
        plain += r.T @ m @ r / reach
    np.testing.assert_allclose(turn.average(m, reach), plain, atol=1e-9)


def test_the_basis_whitens_and_is_undone() -> None:
    bases = make.make_bases(_Model(), [_capture(3), _capture(4)], make.Options())
    facts = _core.basis_facts(bases[1])
    assert facts["layer"] == 1 and facts["frame"] == "pre" and facts["run"] == 8
    for head in facts["heads"]:
        assert head["seen"] and head["variances"][0] == pytest.approx(1)
        assert head["variances"] == sorted(head["variances"], reverse=True)
        errors = head["relative_error"]
        assert errors == sorted(errors, reverse=True) and errors[0] == pytest.approx(1)


@pytest.mark.parametrize("post", [False, True])
def test_what_is_coded_is_as_near_as_the_basis_promises(post: bool) -> None:
    capture = _capture(5)
    (basis, _) = make.make_bases(_Model(), [capture], make.Options(post=post))
    facts = _core.basis_facts(basis)
    assert facts["frame"] == ("post" if post else "pre")
    level = max(i for i, target in enumerate(facts["targets"]) if target <= 4)
    k, v = capture.k[0].copy(), capture.v[0].copy()
    size, measured = _core.recode(
        SPEC, 0, 0, k.view(np.uint16), v.view(np.uint16), [(4.0, 4), ("plain8", 8)], basis, 4
    )
    assert 0 < size < k.nbytes
    predicted = facts["heads"][0]["relative_error"][level]
    energy, error, _, _ = measured[0]
    assert error / energy < 3 * predicted
    np.testing.assert_array_equal(k[:, :4], capture.k[0][:, :4])  # pinned
    assert np.abs(k - capture.k[0]).max() > 0


def test_bad_plans_are_named() -> None:
    k = np.zeros((1, 64, D), np.uint16)
    with pytest.raises(dynacompress.Error, match="needs a basis"):
        _core.recode(SPEC, 0, 0, k, k, [(2.0, 4)], None, 4)
    with pytest.raises(dynacompress.Error, match="kind of V"):
        _core.recode(SPEC, 0, 0, k, k, [("plain8", 3)], None, 4)
    with pytest.raises(dynacompress.Error, match="whole blocks"):
        _core.recode(SPEC, 0, 0, k[:, :60], k[:, :60], [("plain8", 8)], None, 4)


def test_a_profile_comes_back_from_its_bytes_and_damage_is_seen() -> None:
    options = make.Options(tokens=512, omega_prefix=512, omega_continuation=64)
    profile = make.make_profile(_Model(), ["x" * 600, "y" * 700], options)
    data = profile_file.serialise(profile)
    back = profile_file.parse(data)
    assert back.fingerprint == _core.fingerprint(SPEC) and list(back.bases) == list(profile.bases)
    for row, again in zip(profile.cells, back.cells):
        for one, other in zip(row, again):
            assert dataclasses.astuple(other) == pytest.approx(dataclasses.astuple(one), rel=1e-6)
            assert one.omega_k > 0 and one.omega_v > 0 and one.k_error_l2 > one.k_error_l4
    for at in (0, 5, 70, len(data) - 1):
        bad = bytearray(data)
        bad[at] ^= 1
        with pytest.raises(ValueError):
            profile_file.parse(bytes(bad))
    with pytest.raises(ValueError):
        profile_file.parse(data[:-16])


def test_sensitivities_of_v_come_from_the_other_frame() -> None:
    options = make.Options(tokens=512, omega_prefix=512, omega_continuation=64)
    texts = ["x" * 600, "y" * 700]
    pre = make.make_profile(_Model(), texts, options)
    options = dataclasses.replace(options, post=True)
    post = make.make_profile(_Model(), texts, options)
    shared = make.make_profile(_Model(), texts, options, v_from=pre)
    for row, of_pre, of_post in zip(shared.cells, pre.cells, post.cells):
        assert [c.omega_v for c in row] == [c.omega_v for c in of_pre]
        assert [c.omega_k for c in row] == [c.omega_k for c in of_post]
    with pytest.raises(ValueError, match="another model"):
        make.make_profile(_Model(), texts, options, v_from=dataclasses.replace(pre, fingerprint=1))
    with pytest.raises(ValueError, match="has none"):
        make.make_profile(_Model(), texts, options, v_from=dataclasses.replace(pre, cells=()))


def test_short_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter than one block"):
        make.make_profile(_Model(), ["short"])
    with pytest.raises(ValueError, match="shorter than the 2048"):
        make.make_profile(_Model(), ["x" * 600], make.Options(tokens=512))


def test_kl_of_equal_answers_is_zero() -> None:
    log_p = np.log(np.full((3, 4), 0.25, np.float32))
    assert sensitivity.mean_kl(log_p, log_p) == pytest.approx(0, abs=1e-9)
