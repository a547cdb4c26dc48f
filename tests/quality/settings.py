"""The settings of every table of RESULTS.md. Reporting passages only report; the profiles and the
learned bases come from tuning passages.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import retrieval
import texts
from measure import profile_of
from served import Setting

HERE = pathlib.Path(__file__).resolve().parent
PROFILE, PROFILE_POST = HERE / "smollm2-135m.dynf", HERE / "smollm2-135m-post.dynf"
FOUR = texts.BASIS_PROMPTS
EIGHT = (*FOUR, "policy", "gitmanual", "http2", "countries")
# Kept rows at 16 bits and the open tail make 4.2 x: keep = (3136 / 4.2 - 64) / 3072.
KEEP = 0.2222
DROPPING = (
    "snapkv", "fastkv", "dynamickv", "h2o", "keydiff", "streamingllm", "expected_attention",
    "kvdistill", "random",
)  # fmt: skip


def _policy(**keys: object) -> str:
    """TOML of [policy]."""
    return "[policy]\n" + "".join(
        f'{key} = "{value}"\n' if isinstance(value, str) else f"{key} = {value}\n"
        for key, value in keys.items()
    )


# No report will come: a put is not waited for ten seconds, it counts at once.
UNREPORTED = _policy(young_ms=0)


def _main() -> list[Setting]:
    profile, post = profile_of(PROFILE), profile_of(PROFILE_POST)
    rows = [
        Setting("profile 4.2", 4.2, profile, quality="small"),
        Setting("profile 6.0", 6.0, profile, quality="small"),
        Setting("profile 8.0", 8.0, profile, quality="small"),
        Setting("profile 10", 10.0, profile, quality="small"),
        Setting("profile post 6.0", 6.0, post, quality="small"),
        Setting("learned 4.4", 4.4, learn_from=FOUR),
        Setting("learned 6.0", 6.0, learn_from=FOUR),
        Setting("learned 8.0", 8.0, learn_from=FOUR, quality="small"),
        Setting("learned keys only 6.0", 6.0, learn_from=FOUR, windows="none", report=False,
                config=UNREPORTED),
    ]
    filling = [dataclasses.replace(r, name=r.name + ", filling", steady=False) for r in rows]
    return rows + filling


def _learning() -> list[Setting]:
    of = [Setting(f"learned from {n}", 6.0, learn_from=EIGHT[:n]) for n in (1, 2, 4, 8)]
    of += [
        Setting(f"learned from {name} only", 6.0, learn_from=(name,))
        for name in ("tarfile", "wget", "countries")
    ]
    # Where the kind changes, the first document makes the basis and the rest is what came later.
    code = ("truetype", "eigen", "tarfile", "jquery")
    prose = ("essay", "faq", "letters", "policy")
    return [
        *of,
        Setting("four, queries of the last 64 tokens", 6.0, learn_from=FOUR, windows="last"),
        Setting("four, keys only", 6.0, learn_from=FOUR, windows="none", report=False,
                config=UNREPORTED),
        Setting("four of code", 6.0, learn_from=code),
        Setting("four of prose", 6.0, learn_from=prose),
        Setting("one of code, then prose", 6.0, learn_from=("truetype", *prose)),
        Setting("one of prose, then code", 6.0, learn_from=("essay", *code)),
        Setting("profile", 6.0, profile_of(PROFILE)),
    ]


def _swept(name: str, values: Sequence[float]) -> list[Setting]:
    """One option of [policy] at these values, at 6 and 8 x."""
    profile = profile_of(PROFILE)
    return [
        Setting(f"{name} {value:g}, {ratio:g} x", ratio, profile,
                config=_policy(**{name: value}), quality="small")
        for ratio in (6.0, 8.0)
        for value in values
    ]  # fmt: skip


def _hedge() -> list[Setting]:
    return _swept("hedge", (0.0, 0.25, 0.5, 0.75, 1.0))


def _gamma() -> list[Setting]:
    return _swept("gamma", (0.0, 0.25, 0.5, 1.0, 2.0))


def _half_life() -> list[Setting]:
    profile = profile_of(PROFILE)
    return [
        Setting(f"half-life {n}", 6.0, profile, config=_policy(half_life_tokens=n), quality="small")
        for n in (64, 512, 4096, 65536)
    ]


def _omega() -> list[Setting]:
    profile = profile_of(PROFILE)
    return [
        Setting(f"omega {omega}, {ratio:g} x", ratio, profile,
                config=_policy(omega=omega), quality="small")
        for ratio in (4.2, 6.0, 8.0)
        for omega in ("off", "layer", "head")
    ]  # fmt: skip


def _sources() -> list[Setting]:
    """Where importance comes from; with the profile, so that nothing else differs."""
    profile = profile_of(PROFILE)
    return [
        Setting(f"{source}, {ratio:g} x", ratio, profile, config=_policy(score_source=source),
                quality="small", worker=worker)
        for ratio in (6.0, 8.0)
        for source, worker in (("keys_only", ""), ("query_window", ""), ("column_mass", "columns"))
    ]  # fmt: skip


def _basis() -> list[Setting]:
    """Frames, and K without a basis; beside them `run transforms` has Hadamard."""
    pre, post = profile_of(PROFILE), profile_of(PROFILE_POST)
    rows = [
        Setting(f"profile {frame} {ratio:g}", ratio, profile, quality="small")
        for ratio in (4.2, 6.0, 8.0)
        for frame, profile in (("pre", pre), ("post", post))
    ]
    off = "[learner]\nenabled = false\n"
    return [*rows, Setting("no basis, plain4 + 4", 0, config=off +
                           _policy(name="uniform", uniform_k_bits=4, uniform_v_bits=4))]  # fmt: skip


def _policies() -> list[Setting]:
    rows = [
        Setting("dynacompress, profile", 4.2, profile_of(PROFILE)),
        Setting("dynacompress, learned", 4.2, learn_from=FOUR),
        Setting("full", 0, config=_policy(name="full")),
    ]
    for k_bits, v_bits in ((4, 4), (2, 4), (2, 2)):
        toml = _policy(name="uniform", uniform_k_bits=k_bits, uniform_v_bits=v_bits)
        rows.append(Setting(f"uniform K{k_bits}V{v_bits}", 0, learn_from=FOUR, config=toml))
    for name in DROPPING:
        worker = name if name in ("kvdistill", "expected_attention") else ""
        toml = _policy(name=name, keep=KEEP)
        if worker:  # its scores are a rank of tokens: a byte for each
            toml += 'history = "token"\n'
        rows.append(Setting(name, 0, config=toml, quality="small", drops=True, worker=worker))
    for name in ("printed", "printed_corrected"):
        rows.append(Setting(name, 0, learn_from=FOUR, config=_policy(name=name), quality="small"))
    return rows


def _distilled() -> list[Setting]:
    """KV-Distill at other shares, beside one that drops by attention."""
    return [
        Setting(f"{name}, keep {keep:g}", 0, config=_policy(name=name, keep=keep, history="token"),
                quality="small", drops=True, worker="kvdistill" if name == "kvdistill" else "")
        for keep in (0.1, KEEP, 0.5)
        for name in ("kvdistill", "h2o")
    ]  # fmt: skip


def _quick() -> list[Setting]:
    """Two rows, for a first look."""
    profile = profile_of(PROFILE)
    return [
        Setting("profile 6.0", 6.0, profile),
        Setting("learned 6.0", 6.0, learn_from=("essay",)),
    ]


def _few() -> list[Setting]:
    """What `tasks` and `decode` ask of."""
    profile = profile_of(PROFILE)
    rows = [Setting(f"profile {r:g}", r, profile, quality="small") for r in (4.2, 6.0, 8.0)]
    return [*rows, Setting("learned 6", 6.0, learn_from=FOUR)]


def _decode() -> list[Setting]:
    return [dataclasses.replace(s, protocol="decode", name=f"{s.name}, decoding") for s in _few()]


def _long() -> list[Setting]:
    profile = profile_of(PROFILE)
    rows = [
        Setting(f"profile {r:g}, side by side", r, profile, quality="small", protocol="long")
        for r in (4.2, 6.0, 8.0, 10.0, 12.0)
    ]
    return [*rows, Setting("learned 6, side by side", 6.0, learn_from=FOUR, protocol="long")]


TABLES: dict[str, Callable[[], list[Setting]]] = {
    "main": _main,
    "learning": _learning,
    "hedge": _hedge,
    "gamma": _gamma,
    "half-life": _half_life,
    "omega": _omega,
    "sources": _sources,
    "basis": _basis,
    "policies": _policies,
    "distilled": _distilled,
    "tasks": _few,
    "decode": _decode,
    "long": _long,
    "quick": _quick,
}
# What a table asks after serving, where it is not the usual kinds.
KINDS: dict[str, tuple[str, ...]] = {"tasks": retrieval.OTHER_KINDS, "decode": (), "long": ()}
