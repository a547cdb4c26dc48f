"""From a model and texts to a profile."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from .. import _core
from .model import WINDOW, Capture, KvModel
from .moments import LayerMoments, reach_of
from .profile_file import Cell, Profile
from .sensitivity import measure


@dataclasses.dataclass(frozen=True)
class Options:
    """post: the frame that attention kernels over tiles need (runs of 16), else `pre`.

    tokens: of each text, for the basis. omega_texts of prefix + continuation tokens measure the
    sensitivities; 0: only the basis, in seconds.
    """

    post: bool = False
    keys_only: bool = False
    tokens: int = 3072
    omega_texts: int = 2
    omega_prefix: int = 2048
    omega_continuation: int = 256


def _quiet(_what: str, _share: float) -> None:
    return None


def make_profile(
    model: KvModel,
    texts: Sequence[str],
    options: Options = Options(),
    progress: Callable[[str, float], None] = _quiet,
    v_from: Profile | None = None,
) -> Profile:
    """ValueError when a text is too short. progress(what, share of this stage done).

    v_from: another profile of this model, in either frame, whose sensitivities of V are taken.
    """
    known = _known_cells(model, v_from) if v_from is not None else ()
    prompts = [_whole_blocks(model.encode(text), options.tokens) for text in texts]
    captures = []
    for number, prompt in enumerate(prompts):
        progress(f"running text {number + 1} of {len(prompts)}", number / len(prompts))
        captures.append(model.capture(prompt))
    bases = make_bases(model, captures, options)
    fingerprint = _core.fingerprint(model.spec)
    if options.omega_texts == 0:
        return Profile(fingerprint, bases)
    passages = []
    for text in list(texts)[: options.omega_texts]:
        ids = model.encode(text)
        if len(ids) < options.omega_prefix + options.omega_continuation:
            raise ValueError(
                f"a text of {len(ids)} tokens is shorter than the {options.omega_prefix} +"
                f" {options.omega_continuation} that sensitivities are measured on"
            )
        prefix, rest = ids[: options.omega_prefix], ids[options.omega_prefix :]
        capture = model.capture(prefix)
        passages.append((capture, model.go_on(capture, rest[: options.omega_continuation])))
    return Profile(fingerprint, bases, measure(model.spec, bases, passages, progress, known))


def _known_cells(model: KvModel, profile: Profile) -> Sequence[Sequence[Cell]]:
    if profile.fingerprint != _core.fingerprint(model.spec):
        raise ValueError("the profile that V's sensitivities come from is of another model")
    if not profile.cells:
        raise ValueError("the profile that V's sensitivities come from has none")
    return profile.cells


def make_bases(model: KvModel, captures: Sequence[Capture], options: Options) -> list[bytes]:
    """One basis object a layer; empty where there is none (fp8, opaque, nothing seen)."""
    spec, fingerprint = model.spec, _core.fingerprint(model.spec)
    longest = max(capture.k[0].shape[1] for capture in captures)
    bases = []
    for index, layer in enumerate(spec.layers):
        rope = spec.ropes[layer.rope]
        post = options.post or spec.attend or rope.kind == "none"
        moments = LayerMoments(layer, rope, post)
        for capture in captures:
            moments.add(capture.k[index], capture.queries[index], capture.firsts)
        parts = moments.parts(reach_of(layer, longest), options.keys_only)
        if all(part is None for part in parts):
            bases.append(b"")
            continue
        run = 16 if options.post or spec.attend else 0
        tokens = sum(head.tokens for head in moments.heads)
        queries = 0 if options.keys_only else sum(head.queries for head in moments.heads)
        bases.append(
            _core.build_basis(fingerprint, index, layer.head_dim, post, run, tokens, queries, parts)
        )
    return bases


def _whole_blocks(tokens: list[int], most: int) -> list[int]:
    whole = min(len(tokens), most) // WINDOW * WINDOW
    if whole == 0:
        raise ValueError(f"a text of {len(tokens)} tokens is shorter than one block of {WINDOW}")
    return tokens[:whole]
