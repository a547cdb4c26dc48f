"""What the daemon says by itself of a lease, and what of a block's pin outlives the daemon."""

from __future__ import annotations

import signal
from collections.abc import Callable

import dynacompress

import kv
from daemon import Daemon
from frames import Peer, code

LAYER = dict(window=0, max_position=4096, kv_heads=1, q_heads=0, head_dim=64, rope=0, kind=1)
HASH = {"bytes": [5] * 32}
SHARD = dict(layer_begin=0, layer_end=1, head_begin=0, head_end=1)


def test_a_lease_that_ends_is_told(daemon: Daemon) -> None:
    with Peer(daemon.socket) as peer:
        opened = peer.call(
            "OpenContext", model="leases", dtype=2, layers=[LAYER],
            ropes=[dict(kind=0, rotary_dim=0, inv_freq=[])],
        )  # fmt: skip
        context = opened["context"]
        put = peer.call(
            "Put", bytes(2 * 64 * 64 * 2), context=context, shard=SHARD, layer_begin=0,
            layer_count=1, parent={"bytes": [0] * 32}, first_index=0, hashes=[HASH], quality=2,
            durability=0, ttl_ms=0, layout=dict(region=0, dtype=2),
        )  # fmt: skip
        assert code(put) == "OK", put
        found = peer.call(
            "Lookup", context=context, shard=SHARD, hashes=[HASH], min_quality=1, ttl_ms=200,
            lease=True,
        )  # fmt: skip
        assert found["run"] == 1, found
        request, revoked = peer.receive()  # nothing was asked
        assert (request, revoked) == (0, {"lease": found["lease"]})
        lost = peer.call(
            "Fetch", context=context, lease=found["lease"], head_begin=0, head_end=1,
            layer_begin=0, layer_count=1, block_begin=0, block_count=1, form=1,
            layout=dict(region=0, dtype=2),
        )  # fmt: skip
        assert code(lost) == "LEASE_LOST"


def test_pins_outlive_a_kill(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon()
    context = dynacompress.Client(daemon.socket).open_context(kv.spec("pins"))
    names = kv.hashes("pinned", 2)
    assert {s for s, _, _ in kv.put(context, names, kv.values(3, 2), persistent=True)} == {"OK"}
    assert context.pin(names[:1]) == 1
    kv.put(context, kv.hashes("later", 1), kv.values(4, 1), persistent=True)  # synced after it
    daemon.end(signal.SIGKILL)
    daemon.start()
    blocks = dynacompress.Client(daemon.socket).query("inspect")["blocks"]
    pinned = {b["hash"]: b["pinned"] for b in blocks}
    assert [pinned[name.hex()] for name in names] == [True, False]
