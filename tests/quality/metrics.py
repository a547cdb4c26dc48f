"""What is reported of a served cache: bytes, perplexity, divergence, and their intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from smollm2 import F32

F64 = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One passage: the served cache against the full one, per token of the continuation."""

    nll_full: F64  # [tokens], nats of the token that really came
    nll_served: F64  # [tokens], nats
    kl: F64  # [tokens], KL(p_full || p_served) in nats
    top1: npt.NDArray[np.bool_]  # [tokens], the most likely token is the same

    @property
    def ppl_full(self) -> float:
        """Perplexity on the full cache."""
        return float(np.exp(self.nll_full.mean()))

    @property
    def ppl_served(self) -> float:
        """Perplexity on the served cache."""
        return float(np.exp(self.nll_served.mean()))

    @property
    def retention(self) -> float:
        """PPL_full / PPL_served: 1 is perfect, above it luck. (The proposal prints the inverse.)"""
        return self.ppl_full / self.ppl_served


def compare(full: F32, served: F32, targets: npt.ArrayLike) -> Comparison:
    """Of log-probabilities [tokens][vocabulary]; `targets` are the tokens that came."""
    rows, column = np.arange(len(full)), np.asarray(targets, np.int64)
    kl = np.empty(len(full))
    for row in rows:  # a row at a time: the vocabulary is wide
        p = full[row].astype(np.float64)
        kl[row] = np.dot(np.exp(p), p - served[row])
    return Comparison(
        nll_full=-full[rows, column].astype(np.float64),
        nll_served=-served[rows, column].astype(np.float64),
        kl=kl,
        top1=full.argmax(-1) == served.argmax(-1),
    )


def ratio(raw_bytes: int, stored_bytes: int, tail_bytes: int = 0) -> float:
    """Raw over stored; `tail_bytes` (the open tail, 16 bits in the worker) count on both sides."""
    return (raw_bytes + tail_bytes) / (stored_bytes + tail_bytes)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over passages and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def text(self, scale: float = 1.0, digits: int = 4) -> str:
        """'mean (low .. high)', each times `scale`."""
        mean, low, high = (f"{x * scale:.{digits}f}" for x in (self.mean, self.low, self.high))
        return f"{mean} ({low} .. {high})"


def bootstrap(values: Sequence[float], seed: int = 1, draws: int = 10_000) -> Interval:
    """Interval of the mean over passages. Of two policies, give their paired differences."""
    sample = np.asarray(values, np.float64)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"cannot average {sample.size} values, {np.isfinite(sample).sum()} finite")
    picks = np.random.default_rng(seed).integers(0, sample.size, (draws, sample.size))
    low, high = np.percentile(sample[picks].mean(-1), [2.5, 97.5])
    return Interval(float(sample.mean()), float(low), float(high))
