"""What a hostile tenant can do to another one, measured: run attacks (as root: tenants are uids).

Two tenants share a daemon. The victim puts one passage with honest reports, the other tenant another
one, and attacks while there is room, which is when it counts most: bits never come back. Then both
are pressed into one byte budget, that of two such documents at 6 x (4.5 x where a basis is learned).
By name of the row:

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
import re
import tempfile
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import dynacompress
import numpy as np

from capture import Capture, captured
from measure import CONTINUATION, PREFIX, TAIL, Bench, Row
from served import Served, Server, Setting
from settings import PROFILE, profile_of
from smollm2 import Config
from worker import Prepared

HOSTILE_UID = 65534
RATIO, LEARNED_RATIO = 6.0, 4.5  # class balanced without omega ends at 6: near it blocks are spilled
VICTIM, OTHER = "policy", "gitmanual"  # tuning passages: nothing is chosen, nothing reported
LEARN = ("essay", "faq")
ROWS = ("nobody", "honest", "everything", "one token", "hits", "good basis", "bad basis")


def setting_of(name: str) -> Setting:
    """With a profile, except for the rows on bases."""
    learns = name.endswith("basis")
    profile = b"" if learns else profile_of(PROFILE)
    quality = "balanced" if learns else "small"
    ratio = LEARNED_RATIO if learns else RATIO
    return Setting(f"attack {name}", ratio, profile, uids=(HOSTILE_UID,), quality=quality)


def hostile_reports(server: Server, hashes: list[bytes], tokens: int, name: str) -> None:
    """Statistics that no attention gave."""
    config = server.model
    mass = np.zeros((config.layers, config.kv_heads, tokens), np.float32)
    mass[..., :: 1 if name == "everything" else 64] = 1000.0
    for _ in range(100):
        try:
            server.context.report_columns(hashes[-1], mass, queries=1, advance=512)
        except dynacompress.Error as refused:
            if refused.code != "RETRY":  # limits.report_bytes_per_s: part of what is measured
                raise
            time.sleep(0.1)
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


def share(
    name: str, config: Config, binary: pathlib.Path, victim: Capture, other: Capture,
    learn: list[Capture],
) -> tuple[Served, Served | None]:  # fmt: skip
    """Both tenants' documents as they are served under one budget, the victim's first."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        os.chmod(folder, 0o755)
        setting = setting_of(name)
        server = Server(setting, config, binary, pathlib.Path(folder))
        server.start()
        stack.callback(server.stop)
        pipe = None
        if name != "nobody":
            pipe = stack.enter_context(_tenant(server, name, [other, *learn]))
            _said(pipe)
        server.open()
        for one in learn:
            server.delete(server.put_only(Prepared(one)))
        hashes = server.put_only(Prepared(victim))
        if pipe is not None:
            pipe.send("go on")
            _said(pipe)
        server.set_budget(victim, setting.ratio, copies=1 if pipe is None else 2)
        server.settle()
        ours, theirs = server.fetch(victim, hashes), None
        if pipe is not None:
            pipe.send("and yours")
            theirs = _said(pipe)
        return ours, theirs


def outcome(bench: Bench, name: str, binary: pathlib.Path) -> list[Row]:
    """The victim's row and, if it is there, the other tenant's."""
    victim, other = (captured(p, PREFIX, TAIL + CONTINUATION) for p in (VICTIM, OTHER))
    learn = [captured(p, PREFIX, TAIL + CONTINUATION) for p in LEARN]
    served = share(name, bench.config, binary, victim, other,
                   learn if name.endswith("basis") else [])  # fmt: skip
    rows = []
    for who, capture, got in zip(("victim", "other"), (victim, other), served):
        if got is not None:
            rows.append(Row(f"{name}: {who}"))
            bench.continued(capture, got, rows[-1])
    return rows


def measure(binary: pathlib.Path, only: str = "") -> list[Row]:
    """Rows whose name matches `only`: the victim's, then the other tenant's."""
    if os.getuid() != 0:
        raise PermissionError("two tenants are two uids: run attacks as root")
    bench, rows = Bench(binary), []
    for name in (name for name in ROWS if re.search(only, name)):
        try:
            found = outcome(bench, name, binary)
        except Exception as error:  # the other rows are still wanted
            traceback.print_exc()
            rows.append(Row(name, failed=f"{type(error).__name__}: {error}"))
            continue
        for row in found:
            print(" | ".join(row.cells()), flush=True)
        rows += found
    return rows
