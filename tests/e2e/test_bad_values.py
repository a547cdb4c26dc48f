"""Values that the Python client lets through and the daemon must refuse, and disks that fail."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import dynacompress
import numpy as np
import pytest

import kv
from daemon import Daemon, binary


def refused(code: str, call: Callable[..., Any], *args: Any, **options: Any) -> str:
    """The message of the error that `call` must raise."""
    with pytest.raises(dynacompress.Error) as caught:
        call(*args, **options)
    assert caught.value.code == code, str(caught.value)
    return str(caught.value)


# ---- K and V


@pytest.mark.parametrize("bulk", ["region", "socket", "ucx"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_numbers_that_are_none(daemon: Daemon, bulk: str, value: float, side: int) -> None:
    context = dynacompress.Client(daemon.socket, bulk=bulk).open_context(kv.spec("nan"))
    names, bad = kv.hashes(f"nan-{bulk}-{value}-{side}", 2), kv.values(1, 2)
    bad[1, side, 1, 70, 3] = value
    message = refused("INVALID", kv.put, context, names, bad)
    assert "layer 1" in message and "head 1" in message and "token 6" in message, message
    assert context.exists(names)[1].status == "MISS"
    # Class exact keeps what it is given.
    names = kv.hashes(f"kept-{bulk}-{value}-{side}", 2)
    kv.put(context, names, bad, quality="exact")
    got = np.zeros_like(bad)
    assert kv.get(context, names, got) == 2
    assert got.tobytes() == bad.tobytes()


def test_a_refused_put_leaves_nothing(client: dynacompress.Client) -> None:
    context = client.open_context(kv.spec("refused"))
    names, bad = kv.hashes("refused", 2), kv.values(1, 2)
    bad[1, 0, 1, 70, 3] = np.nan
    refused("INVALID", kv.put, context, names, bad)
    assert context.exists(names)[1].status == "MISS"


# ---- statistics


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 3e38])
def test_attention_that_cannot_be(client: dynacompress.Client, value: float) -> None:
    context = client.open_context(kv.spec("mass"))
    names = kv.hashes("mass", 2)
    kv.put(context, names, kv.values(2, 2))
    good = np.full((kv.LAYERS, kv.HEADS, 128), 0.5, np.float32)
    context.report_columns(names[-1], good, queries=64)
    bad = good.copy()
    bad[1, 1, 100] = value
    refused("INVALID", context.report_columns, names[-1], bad, queries=64)
    queries = np.ones((kv.LAYERS, 16, 2 * kv.HEADS, kv.DIM), np.float32)
    if not np.isfinite(value):
        queries[1, 3, 1, 5] = value
        refused("INVALID", context.report_queries, names[-1], 112, queries)


def test_statistics_of_another_length(client: dynacompress.Client) -> None:
    context = client.open_context(kv.spec("mass"))
    names = kv.hashes("mass-length", 2)
    kv.put(context, names, kv.values(2, 2))
    for shape in [(kv.LAYERS, kv.HEADS, 127), (kv.LAYERS, kv.HEADS, 192), (1, 1, 128)]:
        refused("INVALID", context.report_columns, names[-1], np.ones(shape, np.float32), queries=8)
    for shape in [(2, 16, 4, 32), (2, 16, 3, 64), (3, 16, 4, 64), (2, 65, 4, 64)]:
        refused("INVALID", context.report_queries, names[-1], 0, np.ones(shape, np.float32))


# ---- contexts, profiles, leases


@pytest.mark.parametrize("size", [1, 16, 64, 4096, 1 << 20])
def test_a_profile_that_is_none(client: dynacompress.Client, size: int) -> None:
    for seed in range(3):
        profile = np.random.default_rng(seed).bytes(size)
        refused("INVALID", client.open_context, kv.spec(f"profile-{size}-{seed}"), profile=profile)


@pytest.mark.parametrize("table", [[1.0] * 31, [1.0] * 31 + [float("nan")], [float("inf")] * 32])
def test_a_rope_that_is_none(client: dynacompress.Client, table: list[float]) -> None:
    rope = dynacompress.Rope("half", table)
    if len(table) == 32:
        refused("INVALID", client.open_context, dataclasses.replace(kv.spec("rope"), ropes=[rope]))
    else:  # a shorter table is a partial rotation: another context, not an error
        client.open_context(dataclasses.replace(kv.spec("rope"), ropes=[rope]))


def test_a_lease_that_expired(client: dynacompress.Client) -> None:
    context = client.open_context(kv.spec("expired"))
    names, out = kv.hashes("expired", 2), kv.values(3, 2)
    kv.put(context, names, out)
    lease = context.lookup(names, ttl=0.05)
    assert lease.run == 2
    time.sleep(0.3)
    refused("LEASE_LOST", context.fetch, lease, out[:, 0], out[:, 1])
    assert context.lookup(names).run == 2  # the blocks are still there


def test_an_order_that_contradicts_what_is_known(client: dynacompress.Client) -> None:
    context = client.open_context(kv.spec("order"))
    names, want = kv.hashes("order", 3), kv.values(4, 3)
    kv.put(context, names[:2], want[:, :, :, :128])
    third = want[:, :, :, 128:]
    refused("INVALID", kv.put, context, names[2:], third, first_index=7, parent=names[1])
    refused("INVALID", kv.put, context, names[2:], third, first_index=2)  # no parent
    kv.put(context, names[2:], third, first_index=2, parent=names[1])
    assert context.lookup(names).run == 3


# ---- disks


def test_a_spill_folder_that_cannot_be(new_daemon: Callable[..., Daemon], tmp_path: Any) -> None:
    file = pathlib.Path(tmp_path) / "file"
    file.write_text("not a folder")
    daemon = new_daemon(f'[spill]\ndir = "{file}/spill"\n')
    assert "running without it" in daemon.tail()
    assert not daemon.status()["tiers"]["spill"]["available"]
    context = dynacompress.Client(daemon.socket).open_context(kv.spec("no-spill"))
    names, want = kv.hashes("no-spill", 2), kv.values(5, 2)
    kv.put(context, names, want, quality="exact", persistent=True)
    got = np.zeros_like(want)
    assert kv.get(context, names, got) == 2
    assert got.tobytes() == want.tobytes()


def test_a_disk_that_takes_no_more(new_daemon: Callable[..., Daemon]) -> None:
    """Files may not grow (EFBIG): what memory holds is served, what it cannot hold is a miss."""
    daemon = new_daemon("[budget]\nbytes = '2 MiB'\n", arena="16 MiB")
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    context = dynacompress.Client(daemon.socket, deadline=30).open_context(kv.spec("full"))
    for i in range(60):  # 7.8 MB of raw bytes, into 2 MiB
        kv.put(context, kv.hashes(f"full-{i}", 2), kv.values(i, 2), quality="high")
    with pytest.raises(dynacompress.Error):  # never acknowledged: the bank could not write it
        kv.put(context, kv.hashes("bank", 2), kv.values(1, 2), persistent=True)
    assert daemon.end(signal.SIGTERM) == 0  # the flush of the drain fails, the stop does not
    daemon.start()
    for i in range(60):
        want = kv.values(i, 2)
        got = np.zeros_like(want)
        if kv.get(context, kv.hashes(f"full-{i}", 2), got) == 2:
            assert kv.error(got, want) < 0.05, i
    kv.put(context, kv.hashes("after", 2), kv.values(1, 2), persistent=True)


# ---- configuration


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[arena]\nbyte = 1\n", ["arena.byte", "arena.bytes"]),
        ("[sevrer]\nsocket = 'x'\n", ["sevrer", "server"]),
        ("[budget]\nheadroom = 7.0\n", ["budget.headroom"]),
        ("[policy]\nname = 'dynacompres'\n", ["policy.name", "dynacompress"]),
        ("[admin]\nport = 99999\n", ["admin.port"]),
        ("[arena]\nbytes = 'many'\n", ["arena.bytes"]),
        ("[limits]\nclients = 9223372036854775807\n", ["limits.clients"]),
        ("[limits\n", ["bad.toml:1"]),
    ],
)
def test_a_configuration_with_an_error(tmp_path: Any, text: str, wanted: list[str]) -> None:
    file = pathlib.Path(tmp_path) / "bad.toml"
    file.write_text(text)
    for more in (["--check-config"], []):
        ran = subprocess.run(
            [binary(), "--config", str(file), *more], capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 78
        assert all(word in ran.stderr for word in wanted), ran.stderr
    assert os.listdir(tmp_path) == ["bad.toml"]


def test_sighup_takes_over_what_it_can(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon("[budget]\nbytes = '8 MiB'\n")
    client = dynacompress.Client(daemon.socket)

    def told(text: str) -> None:
        end = time.monotonic() + 20
        while text not in daemon.tail():
            assert time.monotonic() < end, daemon.tail()
            time.sleep(0.02)

    daemon.configure("[budget]\nbytes = '4 MiB'\n[policy]\nname = 'full'\n")
    daemon.send(signal.SIGHUP)
    told("SIGHUP: budget.bytes")
    told("needs a restart")
    assert daemon.status()["budget"]["bytes"] == 4 << 20
    # Of the disks too, and what was set at run time stays where the file says nothing new of it.
    client.set_budget(2 << 20)
    tables = "[budget]\nbytes = '4 MiB'\n[policy]\nname = 'full'\n[spill]\nbytes = '300 MiB'\n"
    daemon.configure(tables + "[bank]\nbytes = '400 MiB'\n")
    daemon.send(signal.SIGHUP)
    told("SIGHUP: bank.bytes")
    capacity = 'dynacompress_tier_capacity_bytes{tier="%s"} %d\n'
    page = daemon.page("metrics")
    assert capacity % ("spill", 300 << 20) in page and capacity % ("bank", 400 << 20) in page
    assert capacity % ("host", 2 << 20) in page
    daemon.configure("[budget]\nbyte = 1\n")
    daemon.send(signal.SIGHUP)
    told("kept the running configuration")
    assert daemon.status()["budget"]["bytes"] == 2 << 20
    assert client.query("stats")["ready"]
