"""Frames that no honest client sends: each is answered or cut off, and the daemon goes on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import dynacompress
import numpy as np
import pytest

import frames
import kv
from daemon import Daemon
from frames import Peer, code

LENGTHS = [2**31 - 1, 2**32, 2**63, 2**64 - 1]
LAYER = dict(window=0, max_position=4096, kv_heads=2, q_heads=0, head_dim=64, rope=0, kind=1)
HASH = {"bytes": [7] * 32}
PAYLOAD = 2 * 64 * 64 * 2  # K and V of one head, f16


@pytest.fixture(autouse=True)
def unchanged(daemon: Daemon) -> Iterator[None]:
    """What the daemon held before a test it holds afterwards, and another client is served."""
    before = daemon.settled(connected=0, inflight_requests=0, open_puts=0)
    yield
    after = daemon.settled(connected=0, inflight_requests=0, open_puts=0, regions=0, leases=0)
    assert after["tiers"] == before["tiers"]
    assert after["instance_id"] == before["instance_id"]
    with Peer(daemon.socket) as peer:
        assert code(peer.call("Query", kind=1, limit=1)) == "OK"


@pytest.fixture
def peer(daemon: Daemon) -> Iterator[Peer]:
    with Peer(daemon.socket) as one:
        yield one


def opened(peer: Peer, **changes: Any) -> dict[str, Any]:
    """The reply to OpenContext of one layer."""
    fields: dict[str, Any] = dict(
        model="frames", dtype=2, layers=[LAYER], ropes=[dict(kind=0, rotary_dim=0, inv_freq=[])]
    )
    return peer.call("OpenContext", **(fields | changes))


def put(context: int, **changes: Any) -> dict[str, Any]:
    """Fields of a put of one block, sent with the frame."""
    fields: dict[str, Any] = dict(
        context=context, shard=dict(layer_begin=0, layer_end=1, head_begin=0, head_end=1),
        layer_begin=0, layer_count=1, parent={"bytes": [0] * 32}, first_index=0, hashes=[HASH],
        quality=2, durability=0, ttl_ms=0, layout=dict(region=0, dtype=2),
    )  # fmt: skip
    return fields | changes


def named(region: int, **changes: Any) -> dict[str, Any]:
    """A layout inside a region, two bytes an element, one head."""
    fields: dict[str, Any] = dict(
        region=region, dtype=2, k_token_stride=128, k_head_stride=8192, v_token_stride=128,
        v_head_stride=8192, k_offsets=[0], v_offsets=[8192],
    )  # fmt: skip
    return fields | changes


def memfd(size: int, seals: bool = True) -> int:
    """As a client allocates one."""
    import fcntl

    fd = os.memfd_create("region", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


def register(peer: Peer, fd: int, size: int) -> dict[str, Any]:
    """The reply; the descriptor is closed here."""
    try:
        return peer.call("RegisterRegion", fds=(fd,), size=size)
    finally:
        os.close(fd)


# ---- the header


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".ljust(64, b" "),
        bytes(64),
        b"\xff" * 64,
        frames.header(1, 32, magic=0x4D465945),
        frames.header(1, 32)[:60] + b"\0\0\0\0",
        frames.header(1, 0),
    ],
    ids=["http", "zeros", "ones", "magic", "checksum", "no control"],
)
def test_a_header_that_is_none(daemon: Daemon, head: bytes) -> None:
    with Peer(daemon.socket, greet=False) as peer:
        peer.socket.sendall(head)
        if head != frames.header(1, 0):
            assert peer.closed()
        else:
            assert code(peer.receive()[1]) == "INVALID"


def test_a_frame_of_a_later_version(daemon: Daemon) -> None:
    with Peer(daemon.socket, greet=False) as peer:
        peer.socket.sendall(frames.header(1, 32, version=2) + bytes(32))
        assert peer.closed()


@pytest.mark.parametrize("size", LENGTHS)
def test_lengths_that_nobody_has(daemon: Daemon, size: int) -> None:
    for control, payload in [(min(size, 2**32 - 1), 0), (32, size)]:
        with Peer(daemon.socket) as peer:
            peer.socket.sendall(frames.header(12, control, payload, token=peer.token) + bytes(32))
            assert peer.closed()  # what follows cannot be told apart


@pytest.mark.parametrize("size", [1, 63, 64, 65, 100])
def test_a_frame_cut_short(daemon: Daemon, size: int) -> None:
    control = frames.message("Hello", client_name="cut", features=0)
    with Peer(daemon.socket, greet=False) as peer:
        peer.socket.sendall((frames.header(1, len(control)) + control)[:size])
        peer.socket.shutdown(socket.SHUT_WR)
        assert peer.closed()


# ---- control


def test_control_that_is_no_flatbuffer(peer: Peer) -> None:
    for control in [bytes(32), b"\xff" * 32, os.urandom(64), frames.message("Query", kind=1)[:-4]]:
        peer.socket.sendall(frames.header(26, len(control), token=peer.token) + control)
        assert code(peer.receive()[1]) == "INVALID"
    assert code(peer.call("Query", kind=1, limit=1)) == "OK"  # the connection stays


def test_a_type_that_is_not_the_body(peer: Peer) -> None:
    control = frames.message("Query", kind=1, limit=1)
    peer.socket.sendall(frames.header(9, len(control), token=peer.token) + control)
    assert code(peer.receive()[1]) == "INVALID"


def test_a_protocol_of_the_future(daemon: Daemon) -> None:
    control = frames.message("Hello", protocol=9, version=1, client_name="future", features=0)
    with Peer(daemon.socket, greet=False) as peer:
        peer.socket.sendall(frames.header(1, len(control)) + control)
        assert code(peer.receive()[1]) == "UNSUPPORTED"
    with Peer(daemon.socket, greet=False) as peer:
        peer.send("Hello")
        assert code(peer.receive()[1]) == "UNSUPPORTED"  # Hello.version 0


def test_before_hello(daemon: Daemon) -> None:
    with Peer(daemon.socket, greet=False) as peer:
        assert code(peer.call("Query", kind=1, limit=1)) == "INVALID"


def test_a_forged_token(peer: Peer) -> None:
    own = peer.token
    peer.token = bytes(16)
    assert code(peer.call("Query", kind=1, limit=1)) == "UNAUTHENTICATED"
    peer.token = own[:15] + bytes([own[15] ^ 1])
    assert code(peer.call("Query", kind=1, limit=1)) == "UNAUTHENTICATED"
    peer.token = own
    assert code(peer.call("Query", kind=1, limit=1)) == "OK"


@pytest.mark.parametrize("size", [1, 8, 77, 200, 4096])
def test_a_garbage_ucx_address(daemon: Daemon, size: int) -> None:
    rng = np.random.default_rng(size)
    with Peer(daemon.socket, greet=False) as peer:
        garbage = rng.integers(0, 256, size).tolist()
        reply = peer.call("Hello", client_name="ucx", version=1, features=0, ucx_address=garbage)
        assert code(reply) == "INVALID"


# ---- contexts


@pytest.mark.parametrize(
    "changes",
    [
        {"model": ""},
        {"dtype": 0},
        {"dtype": 99},
        {"layers": []},
        {"layers": [LAYER | {"kv_heads": 0}]},
        {"layers": [LAYER | {"head_dim": 72}]},
        {"layers": [LAYER | {"head_dim": 272}]},
        {"layers": [LAYER | {"kind": 9}]},
        {"layers": [LAYER | {"rope": 1}]},
        {"layers": [LAYER | {"kv_heads": 2, "q_heads": 3}]},
        {"ropes": [dict(kind=1, rotary_dim=64, inv_freq=[1.0] * 31)]},
        {"ropes": [dict(kind=1, rotary_dim=64, inv_freq=[1.0] * 31 + [float("nan")])]},
        {"ropes": [dict(kind=1, rotary_dim=64, inv_freq=[1.0] * 31 + [float("inf")])]},
        {"ropes": [dict(kind=9, rotary_dim=64, inv_freq=[1.0] * 32)]},
        {"ropes": [dict(kind=1, rotary_dim=128, inv_freq=[1.0] * 64)]},
    ],
    ids=str,
)
def test_a_context_that_cannot_be(peer: Peer, changes: dict[str, Any]) -> None:
    reply = opened(peer, **changes)
    assert code(reply) == "INVALID", reply
    assert reply["status"]["message"]


def test_a_context_nobody_opened(peer: Peer) -> None:
    assert code(peer.call("Put", b"\0" * PAYLOAD, **put(12345))) == "CONTEXT_UNKNOWN"
    assert code(peer.call("Put", b"\0" * PAYLOAD, **put(0))) == "INVALID"
    shard = dict(layer_begin=0, layer_end=1, head_begin=0, head_end=1)
    lookup: dict[str, Any] = dict(shard=shard, hashes=[HASH], min_quality=1, lease=True)
    assert code(peer.call("Lookup", context=12345, **lookup)) == "CONTEXT_UNKNOWN"


# ---- puts


@pytest.mark.parametrize("size", [0, 1, PAYLOAD - 1, PAYLOAD + 1, 2 * PAYLOAD])
def test_a_payload_of_another_length(peer: Peer, size: int) -> None:
    context = opened(peer)["context"]
    reply = peer.call("Put", bytes(size), **put(context))
    assert code(reply) == "INVALID"
    assert str(PAYLOAD) in reply["status"]["message"]


@pytest.mark.parametrize(
    "changes",
    [
        dict(layer_begin=1),
        dict(layer_count=0),
        dict(layer_count=2),
        dict(shard=dict(layer_begin=0, layer_end=9, head_begin=0, head_end=1)),
        dict(shard=dict(layer_begin=0, layer_end=1, head_begin=1, head_end=3)),
        dict(shard=dict(layer_begin=0, layer_end=1, head_begin=1, head_end=1)),
        dict(hashes=[]),
        dict(hashes=[{"bytes": [0] * 32}]),
        dict(quality=0),
        dict(quality=9),
        dict(durability=7),
        dict(layout=dict(region=0, dtype=0)),
        dict(layout=dict(region=0, dtype=77)),
        dict(layout=dict(region=5, dtype=2)),
        dict(first_index=3),
        dict(first_index=2**32 - 1, parent=HASH),
    ],
    ids=str,
)
def test_a_put_that_contradicts_its_context(peer: Peer, changes: dict[str, Any]) -> None:
    context = opened(peer)["context"]
    reply = peer.call("Put", bytes(PAYLOAD), **put(context, **changes))
    assert code(reply) == "INVALID", reply


# ---- regions


def test_a_descriptor_that_is_no_region(peer: Peer) -> None:
    assert code(register(peer, memfd(65536, seals=False), 65536)) == "INVALID"
    assert code(register(peer, memfd(4096), 65536)) == "INVALID"
    assert code(register(peer, os.open("/dev/zero", os.O_RDWR), 4096)) == "INVALID"
    assert code(register(peer, os.open(os.devnull, os.O_RDONLY), 4096)) == "INVALID"
    assert code(peer.call("RegisterRegion", size=65536)) == "INVALID"
    for size in [0, *LENGTHS]:
        assert code(register(peer, memfd(4096), size)) in ("INVALID", "TOO_LARGE")


@pytest.mark.parametrize(
    "changes",
    [
        dict(k_offsets=[1 << 20]),
        dict(k_offsets=[65536 - 127]),
        dict(v_offsets=[2**31 - 1]),
        dict(v_offsets=[2**32]),
        dict(v_offsets=[2**63]),
        dict(k_offsets=[]),
        dict(k_offsets=[0, 0]),
        dict(k_token_stride=0),
        dict(k_token_stride=-128),
        dict(k_token_stride=2**31),
        dict(v_token_stride=2**40),
        dict(v_token_stride=2**62),
        dict(v_token_stride=-(2**63)),
    ],
    ids=str,
)
def test_a_layout_out_of_bounds(peer: Peer, changes: dict[str, Any]) -> None:
    context = opened(peer)["context"]
    region = register(peer, memfd(65536), 65536)["region"]
    layout = named(region, **changes)
    assert code(peer.call("Put", **put(context, layout=layout))) == "INVALID"
    assert code(peer.call("DeregisterRegion", region=region)) == "OK"


# ---- clients that do not read


def test_a_client_that_stops_reading(daemon: Daemon) -> None:
    context = dynacompress.Client(daemon.socket).open_context(kv.spec("silent"))
    control = frames.message("Query", kind=1, limit=1)
    with Peer(daemon.socket) as silent:
        silent.socket.settimeout(0.5)
        silent.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            for i in range(20_000):  # bounded: it is cut off, or not read from any more
                silent.socket.sendall(
                    frames.header(26, len(control), token=silent.token, request=i + 9) + control
                )
        except (TimeoutError, ConnectionError):
            pass
        else:
            pytest.fail("20,000 unread answers, and the daemon takes more")
        assert context.lookup(kv.hashes("silent", 1)).run == 0  # others are served


def test_a_lease_that_nobody_granted(peer: Peer) -> None:
    context = opened(peer)["context"]
    fetch: dict[str, Any] = dict(
        context=context, head_begin=0, head_end=1, layer_begin=0, layer_count=1, block_begin=0,
        block_count=1, form=1, layout=dict(region=0, dtype=2),
    )  # fmt: skip
    for lease in [1, 2**31, 2**63]:
        assert code(peer.call("Fetch", lease=lease, **fetch)) == "LEASE_LOST"
        assert code(peer.call("ReleaseLease", lease=lease)) == "LEASE_LOST"
    for count in [0, 2**31 - 1, 2**32 - 1]:
        wrong = fetch | dict(block_count=count)
        assert code(peer.call("Fetch", lease=1, **wrong)) in ("INVALID", "TOO_LARGE")
