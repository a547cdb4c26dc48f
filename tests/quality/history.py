"""What the daemon's history says of a document while it is read: run history, for plots.py."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from capture import captured
from measure import CONTINUATION, PREFIX, TAIL
from served import Server, Setting
from settings import PROFILE, profile_of
from smollm2 import load_model
from worker import Prepared


def _log2(importance: list[float]) -> float:
    """Mean over heads and groups of 8 tokens; what nobody attended to counts as 2^-10."""
    return float(np.log2(np.maximum(importance, 2.0**-10)).mean())


def measure(binary: pathlib.Path, passage: str) -> dict[str, Any]:
    """log2 of importance: `reports` [reports][blocks so far], mean over layers and heads; `layers`
    [layers][blocks] after the last."""
    config, _ = load_model()
    reports: list[list[float]] = []
    last = np.empty(0)
    with Server(Setting("history", 0, profile_of(PROFILE)), config, binary) as server:

        def seen(hashes: list[bytes]) -> None:
            nonlocal last
            blocks = server.inspect(hashes)
            last = np.array(  # [blocks][layers]
                [[_log2(row["importance"]) for row in block["rows"]] for block in blocks]
            )
            reports.append(last.mean(1).tolist())

        server.put_only(Prepared(captured(passage, PREFIX, TAIL + CONTINUATION)), seen)
    return {"passage": passage, "reports": reports, "layers": last.T.tolist()}
