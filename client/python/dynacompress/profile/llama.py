"""The forward pass of llama, qwen2 and qwen3 in numpy, float32, on a KV cache that anyone may fill.

Two threads of this class's own pool share a chunk: rows of the linear layers, heads of the
attention. BLAS itself is held to one thread a call, so that cores are never oversubscribed.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import threadpoolctl  # type: ignore[import-untyped]

from .gguf_file import F32, Config, Weights

CHUNK = 512  # tokens of one prefill step
WINDOW = 64  # queries of one window, and tokens of one block
QUERY_TILE = 128  # queries whose scores are held at once by a thread


@dataclasses.dataclass
class KvCache:
    """K after RoPE and V, float32 [layers][kv_heads][capacity][head_dim]; `length` are valid.

    dropped: bool [layers][kv_heads][capacity], tokens that nobody attends to (None: there are none).
    """

    k: F32
    v: F32
    length: int = 0
    dropped: npt.NDArray[np.bool_] | None = None

    @classmethod
    def empty(cls, config: Config, capacity: int) -> KvCache:
        """A cache for `capacity` tokens."""
        shape = (config.layers, config.kv_heads, capacity, config.head_dim)
        return cls(np.zeros(shape, np.float32), np.zeros(shape, np.float32))

    @classmethod
    def of(cls, k: npt.NDArray[Any], v: npt.NDArray[Any], room: int) -> KvCache:
        """A cache that holds k and v [layers][kv_heads][tokens][head_dim], with room for more."""
        grow = ((0, 0), (0, 0), (0, room), (0, 0))
        return cls(
            np.pad(np.asarray(k, np.float32), grow),
            np.pad(np.asarray(v, np.float32), grow),
            k.shape[2],
        )


@dataclasses.dataclass(frozen=True)
class QueryWindow:
    """Queries after RoPE [layers][positions][heads][head_dim], of positions `first` and on."""

    first: int
    queries: F32


class Llama:
    """A model and two threads. `forward` is what everything else is made of."""

    def __init__(self, config: Config, weights: Weights, threads: int | None = None) -> None:
        self.config = config
        self._w = weights
        self._threads = threads or min(2, os.cpu_count() or 1)
        self._pool = concurrent.futures.ThreadPoolExecutor(self._threads, "llama")
        threadpoolctl.threadpool_limits(1, "blas")
        angles = np.outer(np.arange(config.max_position), config.inv_freq().astype(np.float64))
        self._cos = np.cos(angles).astype(np.float32)  # [max_position][head_dim / 2]
        self._sin = np.sin(angles).astype(np.float32)

    def prefill(
        self, tokens: npt.ArrayLike, cache: KvCache, windows: Iterable[int] = ()
    ) -> Iterator[tuple[int, list[QueryWindow]]]:
        """Runs `tokens` behind the cache in chunks; after each yields (tokens held, its windows).

        `windows` are first positions of query windows; one must not cross a chunk's edge.
        """
        ids = np.asarray(tokens, np.int64)
        wanted = sorted(windows)
        for at in range(0, len(ids), CHUNK):
            part = ids[at : at + CHUNK]
            first = cache.length
            inside = [w for w in wanted if first <= w < first + len(part)]
            _, queries = self.forward(part, cache, keep_queries=bool(inside))
            yield (
                cache.length,
                [QueryWindow(w, queries[:, w - first : w - first + WINDOW]) for w in inside],
            )

    def log_probabilities(self, tokens: npt.ArrayLike, cache: KvCache) -> F32:
        """Teacher-forced: log p(. | cache, tokens[:i + 1]) in nats, [tokens][vocabulary].

        The tokens' own K and V are appended to the cache.
        """
        hidden, _ = self.forward(np.asarray(tokens, np.int64), cache)
        return self.logits_to_log(self.logits(hidden))

    def logits(self, hidden: F32) -> F32:
        """[tokens][vocabulary] from `forward`'s [tokens][width]."""
        matrix = self._w.embedding if self._w.output is None else self._w.output
        return self._rows(lambda x: x @ matrix.T, hidden)

    @staticmethod
    def logits_to_log(logits: F32) -> F32:
        """Log-softmax over the last axis, in place."""
        logits -= logits.max(-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True, dtype=np.float64)).astype(np.float32)
        return logits

    def forward(
        self,
        tokens: npt.NDArray[np.int64],
        cache: KvCache,
        keep_queries: bool = False,
        inputs: list[F32] | None = None,
        first_layer: int = 0,
    ) -> tuple[F32, F32]:
        """One chunk. Returns hidden [tokens][width] after the last norm, and queries if kept.

        Queries are after RoPE, [layers][tokens][heads][head_dim] (else empty). Into an empty list
        `inputs` goes what enters each layer; a full one lets the chunk begin at `first_layer`.
        """
        c, w, n = self.config, self._w, len(tokens)
        start, cache.length = cache.length, cache.length + n
        if cache.length > cache.k.shape[2]:
            raise ValueError(f"cache of {cache.k.shape[2]} tokens cannot hold {cache.length}")
        cos, sin = self._cos[start : start + n, None], self._sin[start : start + n, None]
        kept = np.empty((c.layers if keep_queries else 0, n, c.heads, c.head_dim), np.float32)
        resumed = bool(inputs)
        x = inputs[first_layer].copy() if inputs else w.embedding[tokens]
        q_width, kv_width = c.heads * c.head_dim, c.kv_heads * c.head_dim
        for layer in range(first_layer, c.layers):
            if inputs is not None and not resumed:
                inputs.append(x.copy())
            norm, matrix = w.attention_norm[layer], w.qkv[layer].T
            qkv = self._rows(lambda rows: self._norm(rows, norm) @ matrix, x)
            if w.qkv_bias is not None:
                qkv += w.qkv_bias[layer]
            q = qkv[:, :q_width].reshape(n, c.heads, c.head_dim)
            k = qkv[:, q_width : q_width + kv_width].reshape(n, -1, c.head_dim)
            if w.q_norm is not None and w.k_norm is not None:
                q, k = self._norm(q, w.q_norm[layer]), self._norm(k, w.k_norm[layer])
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            v = qkv[:, q_width + kv_width :].reshape(n, -1, c.head_dim)
            cache.k[layer, :, start : start + n] = k.swapaxes(0, 1)
            cache.v[layer, :, start : start + n] = v.swapaxes(0, 1)
            if keep_queries:
                kept[layer] = q
            dropped = None if cache.dropped is None else cache.dropped[layer]
            attended = self._attend(q, cache.k[layer], cache.v[layer], start, dropped)
            x += self._rows(lambda rows: rows @ w.attention_out[layer].T, attended)
            x += self._rows(lambda rows: self._ffn(rows, layer), x)
        return self._norm(x, w.output_norm), kept

    def _attend(
        self, q: F32, k: F32, v: F32, start: int, dropped: npt.NDArray[np.bool_] | None
    ) -> F32:
        """Causal attention of q [n][heads][head_dim] over k, v [kv_heads][capacity][head_dim]."""
        c, n = self.config, len(q)
        out = np.empty((n, c.heads * c.head_dim), np.float32)
        scaled = q * np.float32(c.head_dim**-0.5)

        def tile(kv_head: int, first: int) -> None:
            last = min(first + QUERY_TILE, n)
            heads = slice(kv_head * c.group, (kv_head + 1) * c.group)
            rows = scaled[first:last, heads].reshape(-1, c.head_dim)  # query major, head minor
            seen = start + last
            scores = rows @ k[kv_head, :seen].T
            if dropped is not None:
                scores[:, dropped[kv_head, :seen]] = -np.inf
            future = np.arange(start + first, seen) > np.arange(start + first, seen)[:, None]
            tail = scores.reshape(last - first, c.group, seen)[:, :, start + first :]
            np.copyto(tail, -np.inf, where=future[:, None])
            scores -= scores.max(-1, keepdims=True)
            np.exp(scores, out=scores)
            mixed = (scores @ v[kv_head, :seen]) / scores.sum(-1, keepdims=True)
            columns = slice(heads.start * c.head_dim, heads.stop * c.head_dim)
            out[first:last, columns] = mixed.reshape(last - first, -1)

        firsts = range(0, n, QUERY_TILE)
        jobs = [self._pool.submit(tile, h, f) for h in range(c.kv_heads) for f in firsts]
        for job in jobs:
            job.result()
        return out

    def _rows(self, function: Callable[[F32], F32], x: F32) -> F32:
        """function(x), its rows shared among the threads."""
        if len(x) < 2 * self._threads:
            return function(x)
        parts = np.array_split(x, self._threads)
        return np.concatenate(list(self._pool.map(function, parts)))

    def _ffn(self, x: F32, layer: int) -> F32:
        w = self._w
        both = self._norm(x, w.ffn_norm[layer]) @ w.gate_up[layer].T
        gate, up = both[:, : self.config.ffn_width], both[:, self.config.ffn_width :]
        out: F32 = (gate / (1 + np.exp(-gate)) * up) @ w.down[layer].T
        return out

    def _norm(self, x: F32, gain: F32) -> F32:
        mean = np.mean(np.square(x), -1, keepdims=True) + np.float32(self.config.rms_epsilon)
        out: F32 = x / np.sqrt(mean) * gain
        return out


def best_llama(config: Config, weights: Weights, device: str = "auto") -> Llama:
    """On CUDA where torch has it, else in numpy. ValueError when "cuda" is asked for in vain."""
    if device != "cpu":
        try:
            import torch
        except ImportError:
            found = False
        else:
            found = torch.cuda.is_available()
        if found:
            from .llama_torch import TorchLlama

            return TorchLlama(config, weights)
        if device == "cuda":
            raise ValueError("no CUDA device, or no torch that can use it")
    return Llama(config, weights)


def _rotate(x: F32, cos: F32, sin: F32) -> F32:
    """`half` RoPE of x [tokens][heads][head_dim]; cos and sin [tokens][1][head_dim / 2]."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
