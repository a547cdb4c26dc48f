"""The demo's one table: a row per step, and how it is printed."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

# Targets of a basis' levels in mean bits (formats 1); a level is called by its target.
TARGETS = (0, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5)
PLAIN = {1: "raw", 2: "fp8", 3: "plain8", 4: "plain4", 7: "none"}
LEVEL0 = 16


@dataclasses.dataclass(frozen=True)
class Row:
    """Sizes in bytes, speeds in GB/s of raw bytes, KL in nats per token, shares 0..1."""

    step: str
    raw: int
    stored: int  # segments with padding, history and the store's entries
    basis: int
    k_kinds: Mapping[str, float]
    v_kinds: Mapping[str, float]
    nmse: float
    ppl_full: float
    ppl_served: float
    kl: float
    top1: float
    put_speed: float
    get_speed: float
    hits: Mapping[str, int]  # by tier, and 'miss'

    @property
    def ratio(self) -> float:
        """Raw over stored."""
        return self.raw / self.stored

    @property
    def retention(self) -> float:
        """PPL_full / PPL_served."""
        return self.ppl_full / self.ppl_served


def kind_name(kind: int, bits: float, is_k: bool) -> str:
    """'plain8', 'L2' for a K tile; 'raw', '4' (bits) for a V tile."""
    if kind < LEVEL0:
        return PLAIN.get(kind, str(kind))
    if not is_k:
        return "mean" if kind == LEVEL0 else str(kind - LEVEL0)
    target = next((t for t in TARGETS if bits <= t + 1e-3), TARGETS[-1])
    return f"L{target:g}"


def shares(blocks: Iterable[Mapping[str, Any]], which: str) -> dict[str, float]:
    """Share of each kind among the K ('k') or V ('v') tiles of inspected blocks."""
    counts: collections.Counter[str] = collections.Counter()
    for block in blocks:
        for row in block["rows"]:
            kinds, bits = row[f"{which}_kind"], row[f"{which}_bits"]
            counts.update(kind_name(k, b, which == "k") for k, b in zip(kinds, bits))
    total = counts.total() or 1
    return {name: count / total for name, count in counts.most_common()}


def _shares_text(kinds: Mapping[str, float]) -> str:
    return " ".join(f"{name}:{share:.0%}" for name, share in list(kinds.items())[:3])


def _hits_text(hits: Mapping[str, int]) -> str:
    return " ".join(f"{tier}:{count}" for tier, count in hits.items() if count)


COLUMNS: tuple[tuple[str, int, Any], ...] = (
    ("step", -22, lambda r: r.step),
    ("raw MB", 7, lambda r: f"{r.raw / 1e6:.1f}"),
    ("stored", 7, lambda r: f"{r.stored / 1e6:.2f}"),
    ("ratio", 6, lambda r: f"{r.ratio:.2f}"),
    ("basis", 6, lambda r: f"{r.basis / 1e6:.2f}"),
    ("K tiles", -24, lambda r: _shares_text(r.k_kinds)),
    ("V tiles", -18, lambda r: _shares_text(r.v_kinds)),
    ("NMSE", 8, lambda r: f"{r.nmse:.1e}"),
    ("PPL full", 8, lambda r: f"{r.ppl_full:.3f}"),
    ("served", 8, lambda r: f"{r.ppl_served:.3f}"),
    ("retention", 9, lambda r: f"{r.retention:.2%}"),
    ("KL", 7, lambda r: f"{r.kl:.4f}"),
    ("top-1", 6, lambda r: f"{r.top1:.1%}"),
    ("put GB/s", 8, lambda r: f"{r.put_speed:.2f}" if r.put_speed else "-"),
    ("get", 5, lambda r: f"{r.get_speed:.2f}" if r.get_speed else "-"),
    ("hits", -16, lambda r: _hits_text(r.hits)),
)


def _cell(text: str, width: int) -> str:
    return f"{text:{-width}}" if width < 0 else f"{text:>{width}}"


def header() -> str:
    """The column heads."""
    return " ".join(_cell(name, width) for name, width, _ in COLUMNS).rstrip()


def line(row: Row) -> str:
    """One row."""
    return " ".join(_cell(value(row), width) for _, width, value in COLUMNS).rstrip()
