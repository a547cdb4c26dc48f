"""Plain values that calls take and return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: pair i turns by position * inv_freq[i].

    kind: "none", "half" (channel i pairs with i + rotary_dim / 2: Llama) or "interleaved" (2i, 2i+1).
    """

    kind: str = "none"
    inv_freq: Sequence[float] = ()

    @property
    def rotary_dim(self) -> int:
        """Channels that turn."""
        return 2 * len(self.inv_freq)


@dataclass(frozen=True)
class Layer:
    """Shape of one attention layer.

    kind: "full", "sliding" (with its window, in tokens) or "opaque" (not K and V: MLA, Mamba).
    rope: index into ContextSpec.ropes.
    q_heads: a multiple of kv_heads; 0 where no query windows will be reported.
    """

    kv_heads: int
    head_dim: int
    q_heads: int = 0
    max_position: int = 131072
    rope: int = 0
    kind: str = "full"
    window: int = 0


@dataclass(frozen=True)
class ContextSpec:
    """One model as the cache sees it.

    dtype: of K and V: "f32", "f16", "bf16", "e4m3" or "e5m2".
    attend: tiles will be attended to in place. masks: readers understand dropped tokens.
    """

    model: str
    layers: Sequence[Layer]
    dtype: str = "bf16"
    revision: str = ""
    adapter: str = ""
    ropes: Sequence[Rope] = field(default_factory=lambda: (Rope(),))
    attend: bool = False
    masks: bool = False


class Hit(NamedTuple):
    """One block of a lookup. status: "OK", "PENDING" or "MISS"; tier: "host", "spill", "bank".

    nmse: mean over K and V of error / energy; K on a level as the queries of its basis see it, in
    plain squares it may be several times that.
    """

    status: str
    tier: str
    nmse: float
    mean_bits: float
    bytes: int
