"""Second moments of K and of queries, and the basis that they give: in double, in numpy.

The mathematics is that of the daemon's learner; here all texts are at hand at once. Source: a
Karhunen-Loeve transform of K in the metric of its queries, y = U' M^(1/2) (x - mean).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from .. import Layer, Rope
from .model import F16, WINDOW

F64 = npt.NDArray[np.float64]
RIDGE = 0.01  # of M's mean diagonal
PINS = 4  # first tokens of a sequence: raw in the cache, not counted here


class Turn:
    """RoPE in double: pairs of channels and their frequencies; the rest has frequency 0."""

    def __init__(self, rope: Rope, head_dim: int) -> None:
        pairs = len(rope.inv_freq) if rope.kind != "none" else 0
        first = np.arange(pairs) if rope.kind == "half" else 2 * np.arange(pairs)
        second = first + pairs if rope.kind == "half" else first + 1
        rest = np.arange(2 * pairs, head_dim, 2)
        self._x = np.concatenate([first, rest]).astype(int)
        self._y = np.concatenate([second, rest + 1]).astype(int)
        inv_freq = np.asarray(rope.inv_freq, np.float32).astype(np.float64)[:pairs]
        self._w = np.concatenate([inv_freq, np.zeros(len(rest))])

    def __call__(self, rows: F64, positions: npt.ArrayLike) -> F64:
        """R(position) of each row [...][head_dim]; a negative position undoes it."""
        angle = np.asarray(positions, np.float64)[..., None] * self._w
        c, s, x, y = np.cos(angle), np.sin(angle), rows[..., self._x], rows[..., self._y]
        out = np.empty_like(rows)
        out[..., self._x], out[..., self._y] = x * c - y * s, x * s + y * c
        return out

    def average(self, m: F64, reach: int) -> F64:
        """E over distances D < reach of R(D) m R(D)', exactly (a geometric sum)."""
        plus = _mean_phase(self._w[:, None] + self._w, reach)
        minus = _mean_phase(self._w[:, None] - self._w, reach)
        xx, yy = m[np.ix_(self._x, self._x)], m[np.ix_(self._y, self._y)]
        xy, yx = m[np.ix_(self._x, self._y)], m[np.ix_(self._y, self._x)]
        p = (xx + yy + 1j * (yx - xy)) * minus
        q = (xx - yy + 1j * (yx + xy)) * plus
        out = np.empty_like(m)
        out[np.ix_(self._x, self._x)] = (p + q).real / 2
        out[np.ix_(self._y, self._y)] = (p - q).real / 2
        out[np.ix_(self._x, self._y)] = (q - p).imag / 2
        out[np.ix_(self._y, self._x)] = (q - p).imag.T / 2
        return out


def _mean_phase(t: F64, reach: int) -> npt.NDArray[np.complex128]:
    """Mean over D < reach of e^(i D t)."""
    half = np.sin(t / 2)
    flat = np.abs(half) < 1e-13
    size = np.sin(reach * t / 2) / np.where(flat, 1, reach * half)
    return np.where(flat, 1, size * np.exp(1j * (reach - 1) * t / 2))


@dataclasses.dataclass
class HeadMoments:
    """Of one kv head: sums over unpinned tokens and over queries of its group."""

    mean: F64  # [d] sum of x
    scatter: F64  # [d][d] sum of (x - tile's mean)(x - tile's mean)'
    second: F64  # [d][d] sum of q q'
    tokens: int = 0
    queries: int = 0


class LayerMoments:
    """Of one layer, from any number of texts. `post`: K as the engine stores it."""

    def __init__(self, layer: Layer, rope: Rope, post: bool) -> None:
        d = layer.head_dim
        self.shape, self._post = layer, post
        self._turn = Turn(rope, d)
        self.heads = [
            HeadMoments(np.zeros(d), np.zeros((d, d)), np.zeros((d, d)))
            for _ in range(layer.kv_heads)
        ]

    def add(self, k: F16, queries: F16, firsts: npt.NDArray[np.int64]) -> None:
        """One text: k [kv_heads][tokens][d], queries [windows][64][heads][d], both after RoPE."""
        group = self.shape.q_heads // self.shape.kv_heads
        at = firsts[:, None] + np.arange(queries.shape[1])
        for head, sums in enumerate(self.heads):
            x = k[head].astype(np.float64)
            if not self._post:
                x = self._turn(x, -np.arange(len(x)))
            for first in range(0, len(x), WINDOW):
                tile = x[max(first, PINS) : first + WINDOW]
                sums.mean += tile.sum(0)
                sums.tokens += len(tile)
                tile = tile - tile.mean(0)
                sums.scatter += tile.T @ tile
            q = queries[:, :, head * group : (head + 1) * group].astype(np.float64)
            if not self._post:
                q = self._turn(q, -np.broadcast_to(at[:, :, None], q.shape[:3]))
            q = q.reshape(-1, q.shape[-1])
            sums.second += q.T @ q
            sums.queries += len(q)

    def parts(self, reach: int, keys_only: bool = False) -> list[tuple[F64, F64, F64, F64] | None]:
        """mu, A, B and the variances of y of each head; None: nothing was seen, or all alike."""
        return [self._head(sums, reach, keys_only) for sums in self.heads]

    def _head(self, sums: HeadMoments, reach: int, keys_only: bool):  # type: ignore[no-untyped-def]
        if sums.tokens == 0 or not np.trace(sums.scatter) > 0:
            return None
        d = self.shape.head_dim
        c = sums.scatter / sums.tokens
        if self._post:
            c = self._turn.average(c, reach)
        m = np.eye(d)
        if sums.queries >= d and not keys_only:
            m = self._turn.average(sums.second / sums.queries, reach)
        m = m / (np.trace(m) / d) + RIDGE * np.eye(d)
        values, vectors = np.linalg.eigh(m)
        root = vectors * np.sqrt(values) @ vectors.T
        inverse = vectors / np.sqrt(values) @ vectors.T
        variance, u = np.linalg.eigh(root @ c @ root)
        variance, u = np.maximum(variance[::-1], 0), u[:, ::-1]
        scale = np.sqrt(variance[0])
        a, b = u.T @ root / scale, inverse @ u * scale
        return sums.mean / sums.tokens, a, b, variance / variance[0]


def reach_of(layer: Layer, longest: int) -> int:
    """Distances that M is averaged over: 4 x the longest text, a power of two, at most the model's."""
    if layer.kind == "sliding" and layer.window:
        return layer.window
    reach = 1 << (4 * longest - 1).bit_length()
    return min(reach, layer.max_position) if layer.max_position else reach
