"""Layers with a sliding window: a prefix is a hit without what their windows have left behind."""

from __future__ import annotations

import dataclasses

import dynacompress
import numpy as np
import pytest

import kv
from daemon import Daemon

BLOCKS, BEHIND = 6, 3  # 100 tokens back are 2 blocks, and one may be computed again


def spec(model: str) -> dynacompress.ContextSpec:
    """Layer 0 is full, layer 1 slides."""
    full = kv.spec(model)
    layers = [full.layers[0], dataclasses.replace(full.layers[1], kind="sliding", window=100)]
    return dataclasses.replace(full, layers=layers)


@pytest.mark.parametrize("as_stored", [False, True])
@pytest.mark.parametrize("bulk", ["region", "socket", "ucx"])
def test_only_the_window_is_needed_and_fetched(daemon: Daemon, bulk: str, as_stored: bool) -> None:
    name = f"sliding-{bulk}-{as_stored}"
    names, want = kv.hashes(name, BLOCKS), kv.values(8, BLOCKS)

    def writer(layers: tuple[int, int]) -> dynacompress.Context:
        return dynacompress.Client(daemon.socket, deadline=60).open_context(
            spec(name), layers=layers
        )

    kv.put(writer((0, 1)), names, want[:1], quality="exact")
    reader = dynacompress.Client(daemon.socket, bulk=bulk, deadline=60).open_context(spec(name))
    assert reader.lookup(names).run == 0
    window = want[1:, :, :, BEHIND * kv.BLOCK :]
    kv.put(
        writer((1, 2)), names[BEHIND:], window, quality="exact", layer=1,
        first_index=BEHIND, parent=names[BEHIND - 1],
    )  # fmt: skip
    assert reader.lookup(names[:-1]).run == 0  # its window reaches one that is not there

    got = np.full_like(want, 7)
    with reader.lookup(names) as lease:
        assert lease.run == BLOCKS
        reply = reader.fetch(lease, got[:, 0], got[:, 1], as_stored=as_stored)
        with pytest.raises(dynacompress.Error, match="MISS"):
            reader.fetch(lease, np.zeros_like(got[:, 0]), np.zeros_like(got[:, 1]),
                         as_stored=as_stored, beyond_windows=True)  # fmt: skip
    assert got[0].tobytes() == want[0].tobytes()
    assert got[1:, :, :, BEHIND * kv.BLOCK :].tobytes() == window.tobytes()
    assert (got[1, :, :, : BEHIND * kv.BLOCK] == 7).all()
    statuses = np.array([s for s, _, _ in reply["segments"]]).reshape(BLOCKS, kv.LAYERS)
    assert (statuses[:, 0] == "OK").all() and (statuses[BEHIND:, 1] == "OK").all()
    assert (statuses[:BEHIND, 1] == "MISS").all()
