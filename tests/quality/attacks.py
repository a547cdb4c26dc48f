"""What a hostile tenant can do to another one, measured: run attacks (as root: tenants are uids).

Two tenants share a daemon and one byte budget, that of two documents at 6 x. The victim puts one
passage with honest reports. The other tenant puts another passage and then, by name of the row:

nobody        there is none; the victim has the budget of one document
honest        reports as a worker does
everything    reports the most attention there is for all of its tokens, 100 times
one token     reports all attention for one token in every block, 100 times
hits          looks all of its blocks up 300 times, so that they count as reused
bad basis     no profile; first sends noise of a few directions, so that the basis it learns is bad.
              `good basis`: the same without the noise. Each tenant learns from its own two passages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from capture import Capture, captured
from measure import CONTINUATION, PREFIX, TAIL, Bench, Row
from served import Server, Setting
from settings import PROFILE, profile_of
from worker import Prepared

HOSTILE_UID = 65534
RATIO = 6.0
VICTIM, OTHER = "policy", "gitmanual"  # tuning passages: nothing is chosen, nothing reported
LEARN = ("essay", "faq")
ROWS = ("nobody", "honest", "everything", "one token", "hits", "good basis", "bad basis")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of the victim and of the other tenant (None: it is not there): rows of a table."""

    name: str
    victim: Row
    other: Row | None


def setting_of(name: str) -> Setting:
    """With a profile, except for the rows on bases."""
    learns = name.endswith("basis")
    profile = b"" if learns else profile_of(PROFILE)
    quality = "balanced" if learns else "small"
    return Setting(f"attack {name}", RATIO, profile, uids=(HOSTILE_UID,), quality=quality)


def hostile_reports(server: Server, hashes: list[bytes], tokens: int, name: str) -> None:
    """Statistics that no attention gave."""
    config = server.model
    mass = np.zeros((config.layers, config.kv_heads, tokens), np.float32)
    mass[..., :: 1 if name == "everything" else 64] = 1000.0
    for _ in range(100):
        server.context.report_columns(hashes[-1], mass, queries=1, advance=512)
    server.settle()


def noise(like: Capture) -> Capture:
    """K in eight random directions, large; queries in others."""
    rng = np.random.default_rng(1)
    d = like.k.shape[-1]
    few = rng.standard_normal((8, d))
    k = rng.standard_normal((*like.k.shape[:-1], 8)) @ few
    q = rng.standard_normal(like.queries.shape)
    return dataclasses.replace(
        like, k=(4 * k).astype(np.float16), queries=q.astype(np.float16)
    )


def _other_tenant(pipe: Connection, server: Server, name: str, passages: list[Capture]) -> None:
    """A process under another uid. Puts, attacks, says so; serves its own document when asked."""
    os.setgroups([])
    os.setgid(HOSTILE_UID)
    os.setuid(HOSTILE_UID)
    try:
        server.open()
        document, *before = passages
        for one in before:
            if name == "bad basis":
                server.delete(server.put_only(Prepared(noise(one))))
            server.delete(server.put_only(Prepared(one)))
        pipe.send("learned")
        pipe.recv()
        hashes = server.put_only(Prepared(document))
        if name in ("everything", "one token"):
            hostile_reports(server, hashes, document.k.shape[2], name)
        if name.startswith("hits"):
            for _ in range(300):
                with server.context.lookup(hashes):
                    pass
        pipe.send("done")
        pipe.recv()
        pipe.send(server.fetch(document, hashes))
        pipe.recv()
    except Exception as error:
        pipe.send(error)


@contextlib.contextmanager
def _tenant(server: Server, name: str, passages: list[Capture]) -> Iterator[Connection]:
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("fork")  # before this process has any thread of the client
    child = spawn.Process(target=_other_tenant, args=(theirs, server, name, passages))
    child.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        child.terminate()
        child.join()


def _said(pipe: Connection) -> Any:
    got = pipe.recv()
    if isinstance(got, Exception):
        raise got
    return got


def outcome(bench: Bench, name: str, binary: pathlib.Path) -> Outcome:
    """Runs one row; both tenants' documents are measured at the end, when all has come to rest."""
    victim, other = (captured(p, PREFIX, TAIL + CONTINUATION) for p in (VICTIM, OTHER))
    learn = [captured(p, PREFIX, TAIL + CONTINUATION) for p in LEARN]
    learn = learn if name.endswith("basis") else []
    rows = Row(f"{name}: victim"), Row(f"{name}: other")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        setting = setting_of(name)
        server = Server(setting, bench.config, binary, pathlib.Path(folder))
        server.start()
        try:
            with contextlib.ExitStack() as stack:
                pipe = None
                if name != "nobody":
                    pipe = stack.enter_context(_tenant(server, name, [other, *learn]))
                    _said(pipe)
                server.open()
                for one in learn:
                    server.delete(server.put_only(Prepared(one)))
                hashes = server.put(Prepared(victim), copies=1 if pipe is None else 2)
                if pipe is not None:
                    pipe.send("go on")
                    _said(pipe)
                server.settle()
                bench.continued(victim, server.fetch(victim, hashes), rows[0])
                if pipe is not None:
                    pipe.send("and yours")
                    bench.continued(other, _said(pipe), rows[1])
        finally:
            server.stop()
    return Outcome(name, rows[0], None if name == "nobody" else rows[1])


def measure(binary: pathlib.Path, only: str = "") -> list[Row]:
    """All rows whose name contains `only`: the victim's, then the other tenant's."""
    if os.getuid() != 0:
        raise PermissionError("two tenants are two uids: run attacks as root")
    bench, rows = Bench(binary), []
    for name in ROWS:
        if only in name:
            got = outcome(bench, name, binary)
            rows += [got.victim] if got.other is None else [got.victim, got.other]
            print(" | ".join(rows[-1 if got.other is None else -2].cells()), flush=True)
    return rows
