"""The compression itself in numpy, without a daemon: tells a daemon's error from the mathematics'.

    python3 prototype.py [--basis PASSAGE ...] [--kinds K2V4 ...] [--tails 64 0] PASSAGE ...

Every tile gets one K level (called by its target in mean bits) and one V width. Quantisers, rotary
embedding, basis and ladder are the independent references of tests/golden, used as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import pathlib
import pickle
import sys
from collections.abc import Sequence

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))
import reference_basis  # noqa: E402
import reference_quant  # noqa: E402
from reference_segment import hadamard  # noqa: E402

import texts  # noqa: E402
from build_folder import build_folder, make_once  # noqa: E402
from capture import F16, Capture, captured  # noqa: E402
from dynacompress.profile.llama import KvCache, Llama  # noqa: E402
from metrics import F64, Comparison, compare, ratio  # noqa: E402
from smollm2 import Config, load_model  # noqa: E402

BLOCK = 64
PINS = 4  # first tokens of the sequence, kept as they are
RUN = 8  # channels of one width
ALL_LIVE = (1 << BLOCK) - 1
ENTRY_BLOCK, ENTRY_CELL = 96, 6  # bytes of the store's entry: per block, and per layer and kv head
HISTORY_GROUPS = 8  # bytes of history per layer, kv head and block


@dataclasses.dataclass(frozen=True)
class HeadBasis:
    """One (layer, kv head): x -> y = a (x - mu) -> b y + mu, and a widths list per level."""

    mu: F16
    a: F16  # [head_dim][head_dim]
    b: F16
    widths: dict[float, list[int]]  # by the level's target in mean bits


def _half(x: F64) -> F16:
    return np.asarray(x).astype(np.float16)


def rope_of(config: Config) -> reference_basis.Rope:
    """The model's rotary embedding in double precision."""
    return reference_basis.Rope("half", config.head_dim, config.head_dim, config.inv_freq())


def _layer_basis(
    config: Config, rope: reference_basis.Rope, layer: int, seen: Sequence[Capture]
) -> list[HeadBasis]:
    d = config.head_dim
    parts = []
    for head in range(config.kv_heads):
        c, m, total, count = np.zeros((d, d)), np.zeros((d, d)), np.zeros(d), 0
        for one in seen:
            x = rope.turn(one.k[layer, head].astype(np.float64), -np.arange(one.k.shape[2]))
            for first in range(0, len(x), BLOCK):
                tile = x[max(first, PINS) : first + BLOCK]
                total, count = total + tile.sum(0), count + len(tile)
                tile = tile - tile.mean(0)
                c += tile.T @ tile
            positions = one.firsts[:, None] + np.arange(BLOCK)
            group = slice(head * config.group, (head + 1) * config.group)
            q = one.queries[:, layer, :, group].astype(np.float64)  # [windows][64][group][d]
            q = rope.turn(q, -np.broadcast_to(positions[:, :, None], q.shape[:3])).reshape(-1, d)
            m += q.T @ q / len(q) / len(seen)
        m = rope.average(m, config.max_position)
        parts.append((total / count, *reference_basis.basis(c / count, m)))
    levels, targets = reference_basis.ladders([p[3] for p in parts], RUN)
    return [
        HeadBasis(_half(mu), _half(a), _half(b), dict(zip(targets, ladder)))
        for (mu, a, b, _), ladder in zip(parts, levels)
    ]


def learn(names: Sequence[str], tokens: int = 3072) -> list[list[HeadBasis]]:
    """Bases [layer][kv head] from those passages, kept in the build folder."""

    def make(path: pathlib.Path) -> None:
        seen = [captured(name, tokens) for name in names]
        config = load_model()[0]
        rope = rope_of(config)
        found = [_layer_basis(config, rope, layer, seen) for layer in range(config.layers)]
        path.write_bytes(pickle.dumps([[vars(head) for head in heads] for heads in found]))

    key = hashlib.sha256(" ".join([*names, str(tokens)]).encode()).hexdigest()[:12]
    path = make_once(build_folder() / "captures" / f"bases-{key}.pickle", make)
    return [[HeadBasis(**head) for head in heads] for heads in pickle.loads(path.read_bytes())]


def _shrunk(x: F64, served: F64, axis: int) -> F64:
    """`served` with the gain of least squared error along an axis: biased, <x, served> < <x, x>."""
    power = np.square(served).sum(axis, keepdims=True)
    return served * np.divide(
        (x * served).sum(axis, keepdims=True), power, out=np.ones_like(power), where=power > 0
    )


def serve_k(
    k: F16, basis: HeadBasis, target: float, rope: reference_basis.Rope, biased: bool = False
) -> F16:
    """K [tokens][d] of whole blocks as a reader gets it, at the level of that target."""
    tokens, d = k.shape
    blocks = tokens // BLOCK
    a, b, mu = (np.asarray(x, np.float64) for x in (basis.a, basis.b, basis.mu))
    y = ((rope.turn(k.astype(np.float64), -np.arange(tokens)) - mu) @ a.T).astype(np.float16)
    back = np.empty_like(y)
    for part, pins in ((slice(0, 1), (1 << PINS) - 1), (slice(1, blocks), 0)):
        # A channel of a tile is a column: tiles side by side are one wide tile.
        wide = y.reshape(blocks, BLOCK, d)[part].swapaxes(0, 1).reshape(BLOCK, -1)
        widths = basis.widths[target] * (wide.shape[1] // d)
        coded = reference_quant.quantise_k(wide.view(np.uint16), widths, RUN, ALL_LIVE, pins)
        out = reference_quant.dequantise_k(*coded, widths, RUN).view(np.float16)
        if biased:
            out = _half(_shrunk(wide.astype(np.float64), out.astype(np.float64), 0))
        rows = slice(part.start * BLOCK, part.stop * BLOCK)
        back[rows] = out.reshape(BLOCK, -1, d).swapaxes(0, 1).reshape(-1, d)
    served = _half(rope.turn(back.astype(np.float64) @ b.T + mu, np.arange(tokens)))
    served[:PINS] = k[:PINS]
    return served


def serve_v(v: F16, bits: int, biased: bool = False) -> F16:
    """V [tokens][d] of whole blocks as a reader gets it, at that width."""
    h = hadamard(v.shape[1])
    z = (v.astype(np.float64) @ h).astype(np.float16)
    back = np.empty_like(z)
    for first in range(0, len(z), BLOCK):
        pins = (1 << PINS) - 1 if first == 0 else 0
        tile = np.ascontiguousarray(z[first : first + BLOCK]).view(np.uint16)
        codes, gains, v_exp = reference_quant.quantise_v(tile, bits, ALL_LIVE, pins)
        back[first : first + BLOCK] = reference_quant.dequantise_v(codes, gains, bits, v_exp).view(
            np.float16
        )
    if biased:
        back = _half(_shrunk(z.astype(np.float64), back.astype(np.float64), 1))
    served = _half(back.astype(np.float64) @ h)
    served[:PINS] = v[:PINS]
    return served


def k_tile_bytes(widths: Sequence[int], run: int, d: int) -> int:
    """Bytes of a K tile (formats.md 3)."""
    scales = sum(run if w == 2 else 2 * run for w in widths if w)
    return 2 * d + -(-scales // 16) * 16 + sum(8 * run * w for w in widths)


def stored_bytes(bases: list[list[HeadBasis]], target: float, bits: int, blocks: int) -> int:
    """Bytes of all sealed segments with padding, history and the store's entries."""
    d = len(bases[0][0].mu)
    total = blocks * ENTRY_BLOCK
    for heads in bases:
        tiles = sum(
            k_tile_bytes(head.widths[target], RUN, d) + (128 if bits == 8 else 64) + 8 * d * bits
            for head in heads
        )
        for block in range(blocks):
            pins = PINS * len(heads) * 2 * d * 2 if block == 0 else 0
            segment = 128 + 16 * len(heads) + pins + tiles
            total += -(-segment // 256) * 256 + (HISTORY_GROUPS + ENTRY_CELL) * len(heads)
    return total


@dataclasses.dataclass(frozen=True)
class Served:
    """One configuration on one passage."""

    comparison: Comparison
    ratio: float  # of the sealed blocks
    ratio_with_tail: float


class Prototype:
    """One passage, coded whole; what was coded once is kept for the next combination."""

    def __init__(self, model: Llama, one: Capture, bases: list[list[HeadBasis]]) -> None:
        self._model, self._one, self._bases = model, one, bases
        self._rope = rope_of(model.config)
        self._coded: dict[tuple[str, float], F16] = {}

    def serve(self, target: float, bits: int, tail: int) -> Served:
        """Seals all but the last `tail` tokens at (target, bits) and continues on that."""
        one, sealed = self._one, self._one.k.shape[2] - tail
        k, v = self._code("k", target).copy(), self._code("v", bits).copy()
        k[:, :, sealed:], v[:, :, sealed:] = one.k[:, :, sealed:], one.v[:, :, sealed:]
        cache = KvCache.of(k, v, len(one.continuation))
        logs = self._model.log_probabilities(one.continuation, cache)
        stored = stored_bytes(self._bases, target, bits, sealed // BLOCK)
        raw = one.raw_bytes * sealed // one.k.shape[2]
        return Served(
            compare(one.full, logs, one.targets),
            ratio(raw, stored),
            ratio(raw, stored, one.raw_bytes - raw),
        )

    def _code(self, which: str, width: float) -> F16:
        """All K at the level of that target, or all V at that width, as a reader gets them."""
        if (which, width) not in self._coded:
            whole = self._one.k if which == "k" else self._one.v
            coded = np.empty_like(whole)
            for layer, head in np.ndindex(whole.shape[:2]):
                x = whole[layer, head]
                coded[layer, head] = (
                    serve_k(x, self._bases[layer][head], width, self._rope)
                    if which == "k"
                    else serve_v(x, int(width))
                )
            self._coded[which, width] = coded
        return self._coded[which, width]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("passages", nargs="+")
    parser.add_argument("--basis", nargs="+", default=list(texts.BASIS_PROMPTS))
    parser.add_argument("--kinds", nargs="+", default=["K4V4", "K2V4", "K2V2"])
    parser.add_argument("--tails", nargs="+", type=int, default=[BLOCK, 0])
    args = parser.parse_args()
    bases = learn(args.basis)
    model = Llama(*load_model())
    print(f"basis of {' '.join(args.basis)}; the last `tail` tokens at 16 bits")
    print("passage      kind  tail  ratio  all  PPL full  served  retention  KL       top-1")
    rows: dict[tuple[str, int], list[list[float]]] = {}
    for name in args.passages:
        coded = Prototype(model, captured(name), bases)
        for kind, tail in itertools.product(args.kinds, args.tails):
            k_target, v_bits = kind.removeprefix("K").split("V")
            got = coded.serve(float(k_target), int(v_bits), tail)
            c = got.comparison
            row = [c.retention, float(c.kl.mean()), float(c.top1.mean())]
            rows.setdefault((kind, tail), []).append(row)
            print(
                f"{name:12} {kind:5} {tail:3} {got.ratio:6.2f} {got.ratio_with_tail:5.2f}"
                f" {c.ppl_full:8.3f} {c.ppl_served:7.3f} {row[0]:9.2%} {row[1]:8.4f} {row[2]:7.1%}",
                flush=True,
            )
    for (kind, tail), values in rows.items():
        mean = np.asarray(values).mean(0)
        print(f"{'mean':12} {kind:5} {tail:3} {'':29} {mean[0]:8.2%} {mean[1]:8.4f} {mean[2]:7.1%}")


if __name__ == "__main__":
    main()
