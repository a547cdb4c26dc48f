"""Clients that die or go silent, and a daemon that is killed under load."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import dynacompress
import numpy as np
import pytest

import kv
from daemon import Daemon

KILLS = 100 if os.environ.get("DYNA_LONG", "0") != "0" else 10
WORKER = pathlib.Path(__file__).parent / "worker.py"


def worker(daemon: Daemon, what: str, argument: str) -> subprocess.Popen[str]:
    """A client in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(WORKER), daemon.socket, what, argument],
        stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def line(process: subprocess.Popen[str]) -> str:
    """What it announces next; "" at its end."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, and gone."""
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_client_killed_in_a_put_leaves_nothing(daemon: Daemon) -> None:
    client = dynacompress.Client(daemon.socket)
    context = client.open_context(kv.spec("killed-put"))
    before = daemon.settled(connected=1, open_puts=0)["clients"]
    dying = worker(daemon, "put", "killed-put")
    assert line(dying) == "half"
    assert context.exists(kv.hashes("half", 2))[0].status == "PENDING"
    kill(dying)
    after = daemon.settled(connected=1, open_puts=0, inflight_requests=0)["clients"]
    assert after == before
    assert [hit.status for hit in context.exists(kv.hashes("half", 2))] == ["MISS", "MISS"]
    # The names are free again.
    assert {s for s, _, _ in kv.put(context, kv.hashes("half", 2), kv.values(9, 2))} == {"OK"}
    # What it had finished is whole.
    names, got = kv.hashes("killed-put-0", 2), np.zeros_like(kv.values(7, 2))
    if kv.get(context, names, got) == 2:
        assert kv.error(got, kv.values(7, 2)) < 0.05


def test_a_client_killed_in_a_fetch_leaves_nothing(daemon: Daemon) -> None:
    client = dynacompress.Client(daemon.socket)
    context = client.open_context(kv.spec("killed-fetch"))
    kv.put(context, kv.hashes("killed-fetch", 4), kv.values(8, 4))
    before = daemon.settled(connected=1, leases=0)["clients"]
    dying = worker(daemon, "fetch", "killed-fetch")
    assert line(dying) == "leased 4"
    line(dying)
    assert daemon.status()["clients"]["leases"] == 1
    kill(dying)
    assert daemon.settled(connected=1, leases=0, inflight_requests=0)["clients"] == before


def test_a_client_that_stops_runs_into_its_lease(daemon: Daemon) -> None:
    """SIGSTOP: it reads nothing, holds a lease, and others are served as before."""
    client = dynacompress.Client(daemon.socket)
    context = client.open_context(kv.spec("stopped"))
    kv.put(context, kv.hashes("stopped", 4), kv.values(8, 4))
    stopped = worker(daemon, "fetch", "stopped")
    assert line(stopped) == "leased 4"
    stopped.send_signal(signal.SIGSTOP)
    try:
        for i in range(3):
            names = kv.hashes(f"meanwhile-{i}", 2)
            kv.put(context, names, kv.values(i, 2))
            assert context.lookup(names).run == 2
    finally:
        kill(stopped)
    daemon.settled(connected=1)


def test_clients_killed_over_ucx_hold_nothing_and_stop_nobody(
    new_daemon: Callable[..., Daemon],
) -> None:
    daemon = new_daemon()
    rng = np.random.default_rng(20261201)
    context = dynacompress.Client(daemon.socket, bulk="ucx", deadline=60).open_context(
        kv.spec("stays")
    )
    names, want = kv.hashes("stays", 8), kv.values(14, 8)
    kv.put(context, names, want, quality="exact")
    for round_ in range(2 * KILLS):
        dying = worker(daemon, "ucx", f"dies-{round_ % 32}")  # contexts stay, and are bounded
        assert line(dying) == "put"
        time.sleep(float(rng.uniform(0, 0.05)))
        if round_ % 2:  # what the daemon sends to it waits
            dying.send_signal(signal.SIGSTOP)
            time.sleep(0.05)
        kill(dying)
        got = np.zeros_like(want)
        assert kv.get(context, names, got) == 8, f"round {round_}"
        assert got.tobytes() == want.tobytes()
    daemon.settled(connected=1, ucx=1, ucx_closing=0, open_puts=0, inflight_requests=0)
    assert re.search(r"^dynacompress_staging_used_bytes 0$", daemon.page("metrics"), re.MULTILINE)


def test_a_daemon_killed_over_ucx_lets_its_clients_go(new_daemon: Callable[..., Daemon]) -> None:
    """What is under way ends at once; what is asked afterwards waits for the daemon's return."""
    daemon = new_daemon()
    rng = np.random.default_rng(20261202)
    context = dynacompress.Client(daemon.socket, bulk="ucx", deadline=15).open_context(
        kv.spec("left")
    )
    want = kv.values(15, 64)
    rounds, asked, ended = [0], [0.0], []

    def work() -> None:
        got = want.copy()
        try:
            for i in range(1_000_000):
                names = kv.hashes(f"left-{i}", 64)
                for call in (
                    lambda names=names: kv.put(context, names, want, quality="exact"),
                    lambda names=names: kv.get(context, names, got),
                    lambda names=names: context.delete(names),
                ):
                    asked[0] = time.monotonic()
                    call()
                rounds[0] += 1
        except dynacompress.Error as error:
            ended.append((error.code, asked[0]))

    for round_ in range(KILLS):
        before = rounds[0]
        working = threading.Thread(target=work)
        working.start()
        while rounds[0] == before and working.is_alive():
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.05)))
        if round_ % 2:  # what is sent to it waits
            daemon.send(signal.SIGSTOP)
            time.sleep(0.05)
        killed = time.monotonic()
        daemon.end(signal.SIGKILL)
        working.join(30)
        assert not working.is_alive(), f"round {round_}: a call did not end"
        code, began = ended[-1]
        # What the library had not sent yet waits as well.
        later = began > killed - 0.01
        assert code in {"CANCELLED", "LEASE_LOST"} or (code == "DEADLINE" and later)
        daemon.start()
    assert len(ended) == KILLS
    names, got = kv.hashes("after", 64), np.zeros_like(want)
    kv.put(context, names, want, quality="exact")
    assert kv.get(context, names, got) == 64
    assert got.tobytes() == want.tobytes()


def test_a_daemon_told_twice_to_stop_does_so_in_the_middle_of_it(
    new_daemon: Callable[..., Daemon],
) -> None:
    daemon = new_daemon()
    writers = [worker(daemon, "persist", str(i)) for i in range(2)]
    try:
        for round_ in range(KILLS):
            for writer in writers:  # both are at it, also after a restart
                assert line(writer)
            time.sleep(0.01 * round_)
            daemon.send(signal.SIGTERM)
            daemon.send(signal.SIGINT)
            assert daemon.wait() >= 0, f"round {round_}: a signal ended it\n{daemon.tail()}"
            daemon.start()
    finally:
        for writer in writers:
            kill(writer)


def test_a_forked_child_gets_a_typed_error(daemon: Daemon) -> None:
    context = dynacompress.Client(daemon.socket).open_context(kv.spec("forked"))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            context.lookup(kv.hashes("forked", 1))
        except dynacompress.Error as error:
            status = 0 if error.code == "UNSUPPORTED" else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert context.lookup(kv.hashes("forked", 1)).run == 0  # the parent goes on


def test_killed_under_load_loses_no_acknowledged_block(
    new_daemon: Callable[..., Daemon],
) -> None:
    daemon = new_daemon("[spill]\nbytes = '256 MiB'\n[bank]\nbytes = '4 GiB'\n")
    rng = np.random.default_rng(20261124)
    said: list[list[str]] = [[], []]
    writers = [worker(daemon, "persist", str(i)) for i in range(len(said))]

    def listen(writer: subprocess.Popen[str], to: list[str]) -> None:
        while text := line(writer):
            to.append(text)

    listeners = [threading.Thread(target=listen, args=p) for p in zip(writers, said)]
    for listener in listeners:
        listener.start()
    try:
        for round_ in range(KILLS):
            before, end = [len(s) for s in said], time.monotonic() + 60
            while any(len(s) < n + 2 for s, n in zip(said, before)):  # both are at it
                assert time.monotonic() < end, f"round {round_}: {said}\n{daemon.tail()}"
                time.sleep(0.01)
            time.sleep(float(rng.uniform(0, 0.1)))
            daemon.end(signal.SIGKILL)
            daemon.start()
    finally:
        for writer in writers:
            writer.kill()
        for listener in listeners:
            listener.join()
        for writer in writers:
            kill(writer)
    acknowledged = [text.split() for one in said for text in one]
    context = dynacompress.Client(daemon.socket).open_context(kv.spec("persistent"))
    lost, wrong = [], []
    for name, number in acknowledged:
        want = kv.values(int(number), 2)
        got = np.zeros_like(want)
        if kv.get(context, kv.hashes(name, 2), got) != 2:
            lost.append(name)
        elif got.tobytes() != want.tobytes():
            wrong.append(name)
    print(f"{KILLS} kills, {len(acknowledged)} chains acknowledged")
    assert (lost, wrong) == ([], [])


@pytest.mark.parametrize("bulk", ["region", "socket", "ucx"])
def test_the_client_survives_a_restart(new_daemon: Callable[..., Daemon], bulk: str) -> None:
    daemon = new_daemon()
    client = dynacompress.Client(daemon.socket, bulk=bulk, deadline=60)
    context = client.open_context(kv.spec("restart"))
    names, want = kv.hashes("restart", 2), kv.values(11, 2)
    memory = client.empty(want.shape)
    memory[:] = want
    kv.put(context, names, memory, quality="exact", persistent=True)
    lease = context.lookup(names)
    assert lease.run == 2
    daemon.end(signal.SIGKILL)
    daemon.start()
    with pytest.raises(dynacompress.Error) as lost:
        context.fetch(lease, memory[:, 0], memory[:, 1])
    assert lost.value.code == "LEASE_LOST"
    assert lease.lost
    # Region and context were registered again without a word.
    memory[:] = 0
    assert kv.get(context, names, memory) == 2
    assert memory.tobytes() == want.tobytes()


def test_sigterm_drains_and_spilled_blocks_come_back(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon()
    context = dynacompress.Client(daemon.socket, deadline=60).open_context(kv.spec("drain"))
    names, want = kv.hashes("drain", 6), kv.values(12, 6)
    kv.put(context, names, want, quality="exact")
    assert daemon.end(signal.SIGTERM) == 0
    assert "stopped" in daemon.tail()
    daemon.start()
    assert [hit.tier for hit in context.exists(names)] == ["spill"] * 6
    got = np.zeros_like(want)
    assert kv.get(context, names, got) == 6
    assert got.tobytes() == want.tobytes()
    assert daemon.status()["tiers"]["host"]["blocks"] == 6
