"""demo.png: what every tile got, beside what attention history said about it."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


def grids(blocks: Sequence[dict[str, Any]], layers: int, heads: int) -> dict[str, F32]:
    """Of inspected blocks: 'k', 'v' bits and 'log2 r' history, each [layers heads][blocks]."""
    found = {name: np.full((layers * heads, len(blocks)), np.nan, np.float32) for name in "kvr"}
    for block in blocks:
        for row in block["rows"]:
            for head in range(row["kv_heads"]):
                at = row["layer"] * heads + row["head_begin"] + head, block["index"]
                found["k"][at], found["v"][at] = row["k_bits"][head], row["v_bits"][head]
                groups = len(row["importance"]) // row["kv_heads"]
                history = row["importance"][head * groups : (head + 1) * groups]
                found["r"][at] = np.log2(max(float(np.mean(history)), 2.0**-10))
    return {"k": found["k"], "v": found["v"], "log2 r": found["r"]}


def draw(
    path: pathlib.Path, title: str, layers: int, heads: int, steps: dict[str, dict[str, F32]]
) -> None:
    """One row of pictures per step: K bits, V bits, attention history; layer and head by block."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = (
        ("k", "K bits", 0.0, 8.0),
        ("v", "V bits", 0.0, 8.0),
        ("log2 r", "log2 r", None, None),
    )
    size = (4.6 * len(columns), 2.6 * len(steps) + 0.6)
    figure, axes = pyplot.subplots(
        len(steps), len(columns), figsize=size, squeeze=False, layout="constrained"
    )
    for axis_row, (step, grid) in zip(axes, steps.items()):
        for axis, (name, label, low, high) in zip(axis_row, columns):
            colours = "magma" if name == "log2 r" else "viridis"
            image = axis.imshow(
                grid[name],
                aspect="auto",
                interpolation="nearest",
                cmap=colours,
                vmin=low,
                vmax=high,
            )
            axis.set_title(f"{step}: {label}", fontsize=9)
            axis.set_yticks(np.arange(0, layers * heads, 5 * heads), range(0, layers, 5))
            axis.tick_params(labelsize=7)
            figure.colorbar(image, ax=axis)
        axis_row[0].set_ylabel("layer (kv heads within)", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("block of 64 tokens", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
