"""Pictures of RESULTS.md, from the JSON that `run TABLE --out FOLDER` leaves.

    python3 plots.py FOLDER [--into tests/quality/plots]

policies.png  ratio against KL, and against far retrieval lost: every row of main, policies, distilled
bits.png      bits of K and of V by layer and head, of the rows of main with a profile
history.png   importance of a document's blocks while it is read (table `history`)
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

from measure import Row  # noqa: E402

FAR = "far 60"
DPI = 80
RATIOS = (1, 2, 3, 4, 6, 8, 10)  # on the axis


def rows_of(folder: pathlib.Path, table: str) -> list[Row]:
    """What was measured of a table; none if it was not. Failed rows are left out."""
    path = folder / f"{table}.json"
    if not path.exists():
        return []
    found = [Row(**row) for row in json.loads(path.read_text())["rows"]]
    return [row for row in found if not row.failed]


def draw_policies(folder: pathlib.Path, out: pathlib.Path) -> bool:
    """Whether there was anything to draw."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 6), constrained_layout=True)
    colours = {"main": "tab:blue", "policies": "tab:red", "distilled": "tab:green"}
    drawn, count = False, 0
    for table, colour in colours.items():
        for row in rows_of(folder, table):
            if "filling" in row.name:
                continue
            x, y = float(np.mean(row.ratio)), max(float(np.mean(row.kl)), 1e-5)
            left.scatter(x, y, color=colour, s=16)
            label = _beside(count := count + 1)
            left.annotate(row.name, (x, y), **label)
            if FAR in row.retrieval and row.retrieval[FAR]:
                lost = row.points_below(FAR)
                right.scatter(x, lost, color=colour, s=16)
                right.annotate(row.name, (x, lost), **label)
            drawn = True
    left.set(xlabel="ratio, all bytes counted", ylabel="KL, nats a token", xscale="log", yscale="log")
    right.set(xlabel="ratio", ylabel="far retrieval: points below the full cache", xscale="log")
    for axis in (left, right):
        axis.grid(alpha=0.3, which="both")
        axis.set_xticks(RATIOS, [f"{x} x" for x in RATIOS])
        axis.set_xticks([], minor=True)
    _save(figure, out / "policies.png", drawn)
    return drawn


def _beside(number: int) -> dict[str, Any]:
    """Where a point's name stands: by turns left and right of it, as many share a ratio."""
    side = -1 if number % 2 else 1
    return {"fontsize": 6, "xytext": (4 * side, -2), "textcoords": "offset points",
            "ha": "right" if side < 0 else "left"}  # fmt: skip


def draw_bits(folder: pathlib.Path, out: pathlib.Path) -> bool:
    """One row of pictures a setting: K, V."""
    rows = [r for r in rows_of(folder, "main") if r.name in ("profile 4.2", "profile 6.0", "profile 8.0")]
    rows = [row for row in rows if row.bits]
    if not rows:
        return False
    figure, axes = pyplot.subplots(len(rows), 2, figsize=(11, 2.2 * len(rows)), squeeze=False,
                                   constrained_layout=True)  # fmt: skip
    for line, row in zip(axes, rows):
        for axis, which in zip(line, ("k", "v")):
            bits = np.mean([one[which] for one in row.bits], axis=0)
            shown = axis.imshow(bits.T, aspect="auto", cmap="viridis", vmin=0, vmax=8,
                                interpolation="none")  # fmt: skip
            axis.set(title=f"{row.name}: bits of {which.upper()}", xlabel="layer", ylabel="kv head")
            axis.set_yticks(range(bits.shape[1]))
    figure.colorbar(shown, ax=axes, label="bits an element")
    _save(figure, out / "bits.png", True)
    return True


def draw_history(folder: pathlib.Path, out: pathlib.Path) -> bool:
    """log2 of importance: blocks over reports, and blocks over layers at the end."""
    path = folder / "history.json"
    if not path.exists():
        return False
    said: dict[str, Any] = json.loads(path.read_text())
    over = _padded(said["reports"])
    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(10, 7), constrained_layout=True)
    for axis, picture, what in ((top, over, "report, every 512 tokens"),
                                (bottom, np.array(said["layers"]), "layer, at the end")):  # fmt: skip
        shown = axis.imshow(picture, aspect="auto", cmap="magma", interpolation="none")
        axis.set(xlabel="block of 64 tokens", ylabel=what)
        figure.colorbar(shown, ax=axis, label="log2 importance")
    top.set_title(f"{said['passage']}: what its history says of each block")
    _save(figure, out / "history.png", True)
    return True


def _padded(lines: list[list[float]]) -> npt.NDArray[np.float64]:
    width = max(map(len, lines))
    return np.array([line + [np.nan] * (width - len(line)) for line in lines])


def _save(figure: Any, path: pathlib.Path, wanted: bool) -> None:
    if wanted:
        figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--into", type=pathlib.Path,
                        default=pathlib.Path(__file__).with_name("plots"))  # fmt: skip
    args = parser.parse_args()
    args.into.mkdir(parents=True, exist_ok=True)
    for draw in (draw_policies, draw_bits, draw_history):
        what = "drawn" if draw(args.folder, args.into) else "nothing to draw"
        print(f"{draw.__name__.removeprefix('draw_')}: {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
