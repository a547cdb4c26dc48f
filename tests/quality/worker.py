"""What a worker does of its own before a put, where a policy scores or changes K and V there.

`columns`: sends the attention that tokens received instead of its queries. `expected_attention` and
`kvdistill`: send a score of each token once the prefix is there; the latter's K and V are those of
its adapters (kvdistill.py), and what answers later is the untouched model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from dynacompress.profile.gguf_file import Config
from dynacompress.profile.llama import Llama

import kvdistill
from build_folder import build_folder, make_once
from capture import BLOCK, Capture
from smollm2 import F32, load_model

KINDS = ("", "columns", "expected_attention", "kvdistill")
FUTURE = 512  # positions ahead that Expected Attention averages over
EPSILON = 0.02  # its floor under a token's attention
OCTAVES = 16.0  # that scores are spread over: the daemon keeps log2 in eighths


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What goes to the daemon. `scores` [layers][kv_heads][tokens], any number >= 0, or None."""

    capture: Capture
    scores: F32 | None = None
    columns: bool = False


def prepare(kind: str, config: Config, capture: Capture, tokens: Sequence[int], keep: float) -> Prepared:
    """`tokens` are the prefix's ids, `keep` the share of them that will stay."""
    if kind == "kvdistill":
        return _distilled(config, capture, np.asarray(tokens), keep)
    if kind == "expected_attention":
        return Prepared(capture, expected_attention(config, capture))
    if kind not in KINDS:
        raise ValueError(f"no worker '{kind}' ({', '.join(KINDS)})")
    return Prepared(capture, columns=kind == "columns")


def column_mass(config: Config, queries: F32, first: int, k: F32) -> F32:
    """Attention that each token received from a window, summed over its queries.

    queries [layers][64][heads][d] after RoPE, of positions `first` and on; k [layers][kv_heads]
    [first + 64][d]. Of a group's heads the most. Returns [layers][kv_heads][tokens].
    """
    n = k.shape[2]
    out = np.empty(k.shape[:3], np.float32)
    future = np.arange(n) > first + np.arange(queries.shape[1])[:, None]
    for layer, head in np.ndindex(k.shape[:2]):
        group = slice(head * config.group, (head + 1) * config.group)
        q = queries[layer, :, group].astype(np.float32).swapaxes(0, 1)  # [group][64][d]
        s = q @ k[layer, head].astype(np.float32).T * np.float32(config.head_dim**-0.5)
        s[:, future] = -np.inf
        s = np.exp(s - s.max(-1, keepdims=True))
        out[layer, head] = (s / s.sum(-1, keepdims=True)).sum(1).max(0)
    return out


def expected_attention(config: Config, capture: Capture) -> F32:
    """Scores of Expected Attention; mean and covariance of queries are those of the windows."""
    c, n, d = config, capture.k.shape[2], config.head_dim
    angles = np.outer(n + np.arange(FUTURE), c.inv_freq().astype(np.float64))
    turn = _rotation(np.cos(angles).mean(0), np.sin(angles).mean(0))
    at = (capture.firsts[:, None] + np.arange(BLOCK)).ravel()
    back = np.outer(at, c.inv_freq().astype(np.float64))
    cos, sin = np.cos(back)[:, None], np.sin(back)[:, None]
    out = np.empty(capture.k.shape[:3], np.float32)
    for layer in range(c.layers):
        q = capture.queries[:, layer].reshape(-1, c.heads, d).astype(np.float64)
        a, b = q[..., : d // 2], q[..., d // 2 :]
        q = np.concatenate([a * cos + b * sin, b * cos - a * sin], -1)  # RoPE undone
        for head in range(c.kv_heads):
            k = capture.k[layer, head].astype(np.float64)
            v = np.linalg.norm(capture.v[layer, head].astype(np.float64), axis=-1)
            attended = np.zeros(n)
            for one in range(head * c.group, (head + 1) * c.group):
                mean = turn @ q[:, one].mean(0)
                cov = turn @ np.cov(q[:, one], rowvar=False) @ turn.T
                z = k @ mean / d**0.5 + np.einsum("td,td->t", k @ cov, k) / (2 * d)
                z = np.exp(z - z.max())
                attended += z / z.sum() / c.group
            out[layer, head] = (attended + EPSILON) * v
    return _spread(out)


def _rotation(cos: F32, sin: F32) -> F32:
    """The `half` rotary matrix [d][d] of (mean) cosines and sines [d / 2]."""
    half = len(cos)
    turn = np.zeros((2 * half, 2 * half))
    i = np.arange(half)
    turn[i, i] = turn[i + half, i + half] = cos
    turn[i, i + half], turn[i + half, i] = -sin, sin
    return turn


def _spread(scores: F32) -> F32:
    """The order of scores [..][tokens], as relative attention 2^-8 .. 2^8: their order is all that
    the policy takes, and small differences would be lost in the daemon's eighths of an octave."""
    order = scores.argsort(-1).argsort(-1) / scores.shape[-1]
    out = np.exp2(OCTAVES * (order - 0.5)).astype(np.float32)
    out[..., : kvdistill.PINS] = 0
    return out / np.float32(scores.shape[-1])


def _distilled(config: Config, capture: Capture, tokens: np.ndarray, keep: float) -> Prepared:  # type: ignore[type-arg]
    n = capture.k.shape[2]
    said = hashlib.sha256(kvdistill.WEIGHTS.read_bytes() + tokens[:n].tobytes() + f"{keep}".encode())

    def make(path: pathlib.Path) -> None:
        model, adapters = Llama(*load_model(), threads=os.cpu_count()), kvdistill.load()
        ranks = kvdistill.scores(model, adapters, tokens[:n])
        selected = kvdistill.select(ranks, round(keep * n))
        k, v = kvdistill.prefill(model, adapters, tokens[:n], selected)
        with path.open("wb") as file:
            np.savez(file, ranks=ranks, k=k.astype(np.float16), v=v.astype(np.float16))

    path = build_folder() / "captures" / f"kvdistill-{said.hexdigest()[:16]}.npz"
    with np.load(make_once(path, make)) as made:
        ranks = np.broadcast_to(made["ranks"], capture.k.shape[:3])
        return Prepared(dataclasses.replace(capture, k=made["k"], v=made["v"]), _spread(ranks))
