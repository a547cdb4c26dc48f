"""Small contexts, and K and V that look like a model's: smooth in time, a few large channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dynacompress
import numpy as np

BLOCK = 64
LAYERS, HEADS, DIM = 2, 2, 64


def spec(model: str, heads: int = HEADS, layers: int = LAYERS) -> dynacompress.ContextSpec:
    """`layers` alike, f16, rotated in halves."""
    frequencies = [10000.0 ** (-i / (DIM // 2)) for i in range(DIM // 2)]
    return dynacompress.ContextSpec(
        model,
        [dynacompress.Layer(heads, DIM, q_heads=2 * heads)] * layers,
        dtype="f16",
        ropes=[dynacompress.Rope("half", frequencies)],
    )


def hashes(name: str, blocks: int) -> list[bytes]:
    """Names of a chain of blocks."""
    salt = name.encode()
    return dynacompress.block_hashes([i % 1000 for i in range(blocks * BLOCK)], salt)


def values(
    seed: int, blocks: int, heads: int = HEADS, layers: int = LAYERS
) -> np.ndarray[Any, np.dtype[np.float16]]:
    """[layers][K, V][heads][tokens][DIM], the same for the same seed."""
    rng = np.random.default_rng(seed)
    shape = (layers, 2, heads, blocks * BLOCK, DIM)
    scale = np.exp(rng.normal(0, 0.7, (layers, 2, heads, 1, DIM)))
    return (rng.normal(0, 1, shape) * scale).astype(np.float16)


def put(
    context: dynacompress.Context, names: Sequence[bytes], kv: Any, **options: Any
) -> list[tuple[str, float, int]]:
    """All layers of a chain from its root, unless `first_index` and `parent` say otherwise."""
    return context.put(names, kv[:, 0], kv[:, 1], **options)


def get(context: dynacompress.Context, names: Sequence[bytes], out: Any, **options: Any) -> int:
    """Fetches the leading run into `out`; how many blocks it has."""
    with context.lookup(names) as lease:
        if lease.run:
            part = out[:, :, :, : lease.run * BLOCK]
            context.fetch(lease, part[:, 0], part[:, 1], **options)
        return lease.run


def error(got: Any, want: Any) -> float:
    """Squared error relative to the energy."""
    a, b = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(((a - b) ** 2).sum() / (b**2).sum())
