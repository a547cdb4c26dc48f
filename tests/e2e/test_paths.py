"""Put and get over every way that bytes can travel, and readers with another split than writers."""

from __future__ import annotations

import subprocess
import time

import dynacompress
import numpy as np
import pytest

import kv
from daemon import Daemon

BULKS = ["region", "socket", "ucx"]
BALANCED = 0.02  # of the energy; measured .0003 at the price of an empty arena


@pytest.mark.parametrize("bulk", BULKS)
def test_exact_comes_back_bit_for_bit(daemon: Daemon, bulk: str) -> None:
    client = dynacompress.Client(daemon.socket, bulk=bulk, deadline=60)
    context = client.open_context(kv.spec(f"exact-{bulk}"))
    names, want = kv.hashes("exact", 4), kv.values(1, 4)
    assert {s for s, _, _ in kv.put(context, names, want, quality="exact")} == {"OK"}
    got = np.zeros_like(want)
    assert kv.get(context, names, got) == 4
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("bulk", BULKS)
@pytest.mark.parametrize("as_stored", [False, True])
def test_balanced_comes_back_close(daemon: Daemon, bulk: str, as_stored: bool) -> None:
    client = dynacompress.Client(daemon.socket, bulk=bulk, deadline=60)
    context = client.open_context(kv.spec(f"balanced-{bulk}"))
    names, want = kv.hashes(f"balanced-{as_stored}", 4), kv.values(2, 4)
    answers = kv.put(context, names, want)
    got = np.zeros_like(want)
    assert kv.get(context, names, got, as_stored=as_stored) == 4
    assert 0 < kv.error(got, want) < BALANCED
    # What the daemon says about the error is what the reader sees.
    said = np.mean([nmse for _, nmse, _ in answers])
    assert kv.error(got, want) == pytest.approx(said, rel=0.5, abs=1e-4)
    assert all(0 < size < 4 * kv.HEADS * kv.BLOCK * kv.DIM for _, _, size in answers)


def test_a_region_is_worked_on_in_place(daemon: Daemon, client: dynacompress.Client) -> None:
    context = client.open_context(kv.spec("in-place"))
    names, want = kv.hashes("in-place", 3), kv.values(3, 3)
    memory = client.empty(want.shape)
    memory[:] = want
    regions = daemon.status()["clients"]["regions"]
    kv.put(context, names, memory, quality="exact")
    memory[:] = 0
    assert kv.get(context, names, memory) == 3
    assert memory.tobytes() == want.tobytes()
    assert daemon.status()["clients"]["regions"] == regions  # no staging region was needed


def test_every_path_reads_what_another_put(daemon: Daemon) -> None:
    names, want = kv.hashes("shared", 2), kv.values(4, 2)
    contexts = {
        bulk: dynacompress.Client(daemon.socket, bulk=bulk, deadline=60).open_context(
            kv.spec("shared")
        )
        for bulk in BULKS
    }
    kv.put(contexts["ucx"], names, want, quality="exact")
    assert {s for s, _, _ in kv.put(contexts["socket"], names, want)} == {"EXISTS"}
    for context in contexts.values():
        got = np.zeros_like(want)
        assert kv.get(context, names, got) == 2
        assert got.tobytes() == want.tobytes()


def test_two_halves_of_the_heads_make_a_whole(daemon: Daemon) -> None:
    spec = kv.spec("tensor-parallel", heads=4)
    names, want = kv.hashes("tensor-parallel", 3), kv.values(5, 3, heads=4)
    reader = dynacompress.Client(daemon.socket).open_context(spec)
    writers = [
        dynacompress.Client(daemon.socket).open_context(spec, heads=heads)
        for heads in [(0, 2), (2, 4)]
    ]
    kv.put(writers[0], names, want[:, :, :2], quality="exact")
    assert reader.lookup(names).run == 0  # half a block is no hit
    got = np.zeros_like(want[:, :, :2])
    assert kv.get(writers[0], names, got) == 3  # but it is one for a reader of that half
    assert got.tobytes() == want[:, :, :2].tobytes()
    kv.put(writers[1], names, want[:, :, 2:], quality="exact")
    whole = np.zeros_like(want)
    assert kv.get(reader, names, whole) == 3
    assert whole.tobytes() == want.tobytes()


def test_layers_of_two_stages_make_a_whole(daemon: Daemon) -> None:
    spec = kv.spec("pipeline", layers=4)
    names, want = kv.hashes("pipeline", 2), kv.values(6, 2, layers=4)
    reader = dynacompress.Client(daemon.socket).open_context(spec)
    for first, last in [(0, 1), (1, 4)]:
        assert reader.lookup(names).run == 0
        stage = dynacompress.Client(daemon.socket).open_context(spec, layers=(first, last))
        kv.put(stage, names, want[first:last], quality="exact", layer=first)
    whole = np.zeros_like(want)
    assert kv.get(reader, names, whole) == 2
    assert whole.tobytes() == want.tobytes()


def test_nothing_listens_but_the_admin_page(daemon: Daemon) -> None:
    dynacompress.Client(daemon.socket, bulk="ucx")  # UCX is loaded, and opens no port
    shown = subprocess.run(["ss", "-Hlntup"], capture_output=True, text=True, check=True).stdout
    own = [line.split()[4] for line in shown.splitlines() if f"pid={daemon.pid}," in line]
    assert own == [f"127.0.0.1:{daemon.port}"]


def test_an_idle_daemon_uses_no_cpu(daemon: Daemon) -> None:
    daemon.settled(inflight_requests=0)
    used = []
    for _ in range(20):  # longer than a lease that an earlier test may have left (30 s)
        before = daemon.cpu_ticks()
        time.sleep(2)
        used.append(daemon.cpu_ticks() - before)
        if used[-1] <= 1:  # a tick is 10 ms; a timer that never stops takes more in every window
            return
    raise AssertionError(f"ticks of CPU in each 2 s: {used}")
