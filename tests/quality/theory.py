"""The first-order model against what was measured: run theory (THEORY.md says what it is).

Predicted: sum over K and V of every (layer, kv head) of omega times the relative error that the
served tiles have: of K in the basis, of V as it is, over what varies inside a tile. Measured: the
KL of the model on those tiles. Tuning passages; the profile of the test model.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from dynacompress.profile.profile_file import Profile, parse

import prototype
from capture import BLOCK, F16, captured
from measure import CONTINUATION, PREFIX, TAIL, Bench, Row
from served import Server
from settings import PROFILE, TABLES

RATIOS = ("profile 4.2", "profile 6", "profile 8")  # rows of the table `tasks`
F64 = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Nats of KL that the errors of K and of V are said to cost, [layers][kv_heads]."""

    k: F64
    v: F64

    @property
    def total(self) -> float:
        return float(self.k.sum() + self.v.sum())


def forward_matrices(basis: bytes, heads: int, d: int) -> list[tuple[F64, F64]]:
    """(mu [d], A [d][d]) of each kv head out of a basis object; widths are what is left of it."""
    each = (len(basis) - 64) // heads
    found = []
    for head in range(heads):
        values = np.frombuffer(basis, "<f2", (1 + d) * d, 64 + head * each).astype(np.float64)
        found.append((values[:d], values[d:].reshape(d, d)))
    return found


def relative_error(x: F64, served: F64) -> float:
    """Squared error over variance inside the tile, of rows [tokens][d] without the pinned ones."""
    x, served = x[prototype.PINS :], served[prototype.PINS :]
    first = BLOCK - prototype.PINS
    starts = [0, *range(first, len(x), BLOCK)]
    sizes = np.diff([*starts, len(x)])[:, None]
    means = np.repeat(np.add.reduceat(x, starts, axis=0) / sizes, sizes[:, 0], axis=0)
    return float(np.square(x - served).sum() / np.square(x - means).sum())


def predict(profile: Profile, bench: Bench, k: F16, v: F16, got_k: F16, got_v: F16) -> Predicted:
    """Of K and V [layers][kv_heads][tokens][d] and their served form; a profile in frame `pre`."""
    rope, at = prototype.rope_of(bench.config), -np.arange(k.shape[2])
    of_k, of_v = np.zeros(k.shape[:2]), np.zeros(k.shape[:2])
    for layer, cells in enumerate(profile.cells):
        bases = forward_matrices(profile.bases[layer], len(cells), k.shape[3])
        for head, (cell, (mu, a)) in enumerate(zip(cells, bases)):
            y, got_y = (
                (rope.turn(x[layer, head].astype(np.float64), at) - mu) @ a.T for x in (k, got_k)
            )
            of_k[layer, head] = cell.omega_k * relative_error(y, got_y)
            z, got_z = (x[layer, head, prototype.PINS :].astype(np.float64) for x in (v, got_v))
            error = np.square(z - got_z).sum() / np.square(z).sum()
            of_v[layer, head] = cell.omega_v * error
    return Predicted(of_k, of_v)


def measure(binary: pathlib.Path, passages: Sequence[str]) -> str:
    """The table."""
    bench, profile = Bench(binary), parse(PROFILE.read_bytes())
    lines = ["| passage | ratio | predicted of K | of V | together | measured KL | measured over predicted |",
             "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for setting in (s for s in TABLES["tasks"]() if s.name in RATIOS):
        with Server(setting, bench.config, binary) as server:
            for name in passages:
                one = captured(name, PREFIX, TAIL + CONTINUATION)
                served, row = server.serve(one), Row(name)
                bench.continued(one, served, row)
                said = predict(profile, bench, one.k, one.v, served.k, served.v)
                kl = row.kl[0]
                lines.append(
                    f"| {name} | {row.ratio[0]:.2f} | {said.k.sum():.4f} | {said.v.sum():.4f} |"
                    f" {said.total:.4f} | {kl:.4f} | {kl / said.total:.2f} |"
                )
                print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"
