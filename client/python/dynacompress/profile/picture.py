"""A profile as a picture: spectra of the bases, widths at L2, sensitivities by layer and head."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np


def draw(path: pathlib.Path, title: str, layers: list[dict[str, Any]]) -> None:
    """Writes a PNG. Layers without a basis are left blank."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 9), constrained_layout=True)
    figure.suptitle(f"{title}: {len(layers)} layers")
    with_basis = [row for row in layers if row.get("heads")]
    colours = pyplot.get_cmap("viridis")
    for row in with_basis:
        for head in row["heads"]:
            axes[0, 0].semilogy(
                np.maximum(head["variances"], 1e-7), color=colours(row["layer"] / len(layers)), lw=0.6
            )
    axes[0, 0].set(title="variance of y by channel (dark: first layers)", xlabel="channel")
    if with_basis:
        widths = []
        for row in with_basis:
            at = max(i for i, target in enumerate(row["targets"]) if target <= 2)
            widths += [head["widths"][at] for head in row["heads"]]
        shown = axes[0, 1].imshow(np.array(widths), aspect="auto", cmap="magma", interpolation="none")
        figure.colorbar(shown, ax=axes[0, 1], label="bits")
    axes[0, 1].set(title="widths at L2", xlabel="run of channels", ylabel="layer, head")
    for axis, kind in ((axes[1, 0], "omega_k"), (axes[1, 1], "omega_v")):
        axis.set(title=f"log2 of {kind}", xlabel="layer", ylabel="head")
        rows = [row[kind] for row in layers if kind in row]
        if rows and len({len(row) for row in rows}) == 1:
            shown = axis.imshow(np.log2(np.array(rows).T), aspect="auto", cmap="viridis")
            figure.colorbar(shown, ax=axis)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
