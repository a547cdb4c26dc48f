"""Tables of the mathematics alone (prototype.py, no daemon): what one choice is worth, all else equal.

transforms  K in the learned basis, behind a Hadamard matrix, as it is; at equal mean bits
gains       unbiased gains against those of least squared error
pruned      a quarter of each head's tiles, those least attended to, gone in three ways; rest 16 bits
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from dynacompress.profile.llama import KvCache, Llama, best_llama

import prototype
import texts
from capture import BLOCK, F16, Capture, captured
from measure import Row
from metrics import compare, ratio
from prototype import HeadBasis, serve_k, serve_v, stored_bytes
from smollm2 import load_model
from worker import column_mass

PRUNED = 0.25  # of a head's tiles


@dataclasses.dataclass(frozen=True)
class Form:
    """K and V as a reader gets them, the tokens that nobody attends to, and the bytes of it all."""

    name: str
    k: F16
    v: F16
    stored: int
    dropped: npt.NDArray[np.bool_] | None = None


class _NoRope:
    """Of K that stays as it is stored."""

    @staticmethod
    def turn(x: npt.NDArray[np.float64], _: object) -> npt.NDArray[np.float64]:
        return x


def _each(x: F16, serve: Callable[[int, int], F16]) -> F16:
    out = np.empty_like(x)
    for layer, head in np.ndindex(x.shape[:2]):
        out[layer, head] = serve(layer, head)
    return out


def _flat(matrix: F16, config: object) -> list[list[HeadBasis]]:
    """One matrix for all heads, and one width for all of its channels."""
    d, runs = len(matrix), len(matrix) // prototype.RUN
    widths = {float(w): [w] * runs for w in (2, 4, 8)}
    one = HeadBasis(np.zeros(d, np.float16), matrix, matrix.T.copy(), widths)
    return [[one] * config.kv_heads for _ in range(config.layers)]  # type: ignore[attr-defined]


def transforms(model: Llama, one: Capture) -> Iterator[Form]:
    c = model.config
    rope = prototype.rope_of(c)
    h = prototype.hadamard(c.head_dim).astype(np.float16)
    choices = (
        ("basis", prototype.learn(texts.BASIS_PROMPTS), rope),
        ("Hadamard", _flat(h, c), _NoRope),
        ("none", _flat(np.eye(c.head_dim, dtype=np.float16), c), _NoRope),
    )
    coded = {bits: _each(one.v, lambda i, j, bits=bits: serve_v(one.v[i, j], bits)) for bits in (4, 2)}
    for k_bits, v_bits in ((4.0, 4), (2.0, 4), (2.0, 2)):
        for name, bases, turn in choices:
            k = _each(one.k, lambda i, j: serve_k(one.k[i, j], bases[i][j], k_bits, turn))
            size = stored_bytes(bases, k_bits, v_bits, one.k.shape[2] // BLOCK)
            yield Form(f"{name}, K{k_bits:g}V{v_bits}", k, coded[v_bits], size)


def gains(model: Llama, one: Capture) -> Iterator[Form]:
    bases, rope = prototype.learn(texts.BASIS_PROMPTS), prototype.rope_of(model.config)
    for k_bits, v_bits in ((2.0, 4), (2.0, 2)):
        size = stored_bytes(bases, k_bits, v_bits, one.k.shape[2] // BLOCK)
        for of_k, of_v in ((False, False), (True, False), (False, True), (True, True)):
            k = _each(one.k, lambda i, j: serve_k(one.k[i, j], bases[i][j], k_bits, rope, of_k))
            v = _each(one.v, lambda i, j: serve_v(one.v[i, j], v_bits, of_v))
            biased = " and ".join(n for n, is_so in (("K", of_k), ("V", of_v)) if is_so)
            yield Form(f"K{k_bits:g}V{v_bits}, {biased or 'neither'} biased", k, v, size)


def pruned(model: Llama, one: Capture) -> Iterator[Form]:
    c, tokens = model.config, one.k.shape[2]
    rope = prototype.rope_of(c)
    mass = np.zeros(one.k.shape[:3], np.float32)
    for first, queries in zip(one.firsts, one.queries):
        seen = int(first) + BLOCK
        mass[:, :, :seen] += column_mass(c, queries, int(first), one.k[:, :, :seen])
    tiles = mass.reshape(*mass.shape[:2], -1, BLOCK).sum(-1)
    tiles[:, :, 0] = np.inf  # holds the pins
    rank = tiles.argsort(-1).argsort(-1)
    gone = np.repeat(rank < PRUNED * tiles.shape[-1], BLOCK, axis=-1)
    raw = one.raw_bytes - int(gone.sum()) * c.head_dim * 4

    def mean(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        blocks = x.reshape(-1, BLOCK, x.shape[-1])
        return np.broadcast_to(blocks.mean(1, keepdims=True), blocks.shape).reshape(x.shape)

    at = np.arange(tokens)
    k = _each(one.k, lambda i, j: rope.turn(
        mean(rope.turn(one.k[i, j].astype(np.float64), -at)), at).astype(np.float16))  # fmt: skip
    v = _each(one.v, lambda i, j: mean(one.v[i, j].astype(np.float64)).astype(np.float16))
    here = gone[..., None]
    yield Form("mean of the tile", np.where(here, k, one.k), np.where(here, v, one.v), raw)
    yield Form("masked", one.k, one.v, raw, gone)
    zero = np.float16(0)
    yield Form("rows of zeros", np.where(here, zero, one.k), np.where(here, zero, one.v), raw)


TABLES: dict[str, Callable[[Llama, Capture], Iterator[Form]]] = {
    "transforms": transforms, "gains": gains, "pruned": pruned,
}  # fmt: skip


def measure(table: str, only: Callable[[str], bool], passages: Sequence[str]) -> list[Row]:
    """A row a form; the sealed prefix of 3,072 tokens, 256 after it, no open tail."""
    model = best_llama(*load_model())
    rows: dict[str, Row] = {}
    for passage in passages:
        one = captured(passage)
        for form in TABLES[table](model, one):
            if not only(form.name):
                continue
            cache = KvCache.of(form.k, form.v, len(one.continuation))
            if form.dropped is not None:
                cache.dropped = np.pad(form.dropped, ((0, 0), (0, 0), (0, len(one.continuation))))
            got = compare(one.full, model.log_probabilities(one.continuation, cache), one.targets)
            row = rows.setdefault(form.name, Row(form.name))
            row.ratio.append(ratio(one.raw_bytes, form.stored))
            row.retention.append(got.retention)
            row.kl.append(float(got.kl.mean()))
            row.top1.append(float(got.top1.mean()))
            row.k_bits.append(0.0)
            row.v_bits.append(0.0)
            print(f"{passage:12} {form.name:24} KL {row.kl[-1]:.4f}", flush=True)
    return list(rows.values())
