"""A cache as the daemon serves it: put with statistics under a budget, waited for, fetched back.

One daemon a `Setting`; a document is put, served and deleted before the next one comes.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from typing import Any

import dynacompress
import numpy as np
import numpy.typing as npt
from dynacompress.profile.gguf_model import spec_of

from build_folder import REPOSITORY, build_folder
from capture import CONTINUATION, F16, PREFIX, TAIL, Capture, captured
from worker import Prepared, column_mass, prepare
from smollm2 import Config

sys.path.insert(0, str(REPOSITORY / "deploy" / "demo.d"))
from daemon import Daemon  # noqa: E402

BLOCK = 64
REFERENCE = 3072  # tokens of the document that a ratio is said of
EVERY = 512  # tokens between two query windows
ENTRY_BLOCK, ENTRY_CELL, HISTORY = 96, 6, 8  # bytes of the store beside segments (formats 6)
SETTLED, OVER_BUDGET = 4, 100  # equal readings of the gauges in a row; where bytes do not fit yet
WAIT = 0.05  # s between two
PATIENCE = 400  # fetches of one document that may be told to come again
BUDGET, SLACK = 'dynacompress_tier_capacity_bytes{tier="host"}', 1.02
ARENA = '[arena]\nbytes = "1 GiB"\nprefault = false\n'  # several daemons run side by side


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a row of a table is made.

    ratio: raw over stored bytes that the budget asks for, the open tail counted in both; 0: none.
    profile: a profile's bytes. learn_from: passages that go before, for the daemon to learn from.
    windows: which of their query windows go with those (all, last: of the last 64 tokens, none).
    steady: the price is already where the budget puts it when the document comes (else the document
    fills an empty arena and is demoted on the way). worker: what is done before the put (worker.py).
    protocol: one (a document at a time), decode (what comes after is put and served too, 64 tokens
    at a time), long (LONG documents side by side under one budget).
    """

    name: str
    ratio: float
    profile: bytes = b""
    learn_from: Sequence[str] = ()
    windows: str = "all"
    steady: bool = True
    config: str = ""  # TOML beside the defaults
    quality: str = "balanced"
    report: bool = True  # windows of the document itself
    drops: bool = False  # a policy that drops tokens: the reader masks them, see Served.kept
    worker: str = ""
    uids: Sequence[int] = ()  # that may connect beside this process's
    protocol: str = "one"

    @property
    def keep(self) -> float:
        """Share of tokens that a policy that drops them keeps."""
        return float(tomllib.loads(self.config).get("policy", {}).get("keep", 0.25))


@dataclasses.dataclass(frozen=True)
class Served:
    """K and V [layers][kv_heads][tokens][head_dim] of the sealed blocks, and what they took."""

    k: F16
    v: F16
    stored_bytes: int
    basis_bytes: int
    blocks: list[dict[str, Any]]  # what `inspect` says of each
    dropped: npt.NDArray[np.bool_] | None = None  # [layers][kv_heads][tokens]

    @property
    def kept(self) -> float:
        """Share of K and V rows that a policy has kept."""
        return 1.0 if self.dropped is None else 1.0 - float(self.dropped.mean())

    def bits_by_head(self) -> dict[str, list[list[float]]]:
        """Of 'k' and 'v', [layers][kv_heads], over the blocks."""
        layers, heads = self.k.shape[:2]
        found = {}
        for which in ("k", "v"):
            total = np.zeros((layers, heads))
            for block in self.blocks:
                for row in block["rows"]:
                    total[row["layer"]] += row[which + "_bits"]
            found[which] = (total / len(self.blocks)).tolist()
        return found

    def mean_bits(self, which: str) -> float:
        """Of 'k' or 'v': bits an element, over all tiles."""
        return float(np.mean([row[which + "_bits"] for b in self.blocks for row in b["rows"]]))


class Server:
    """One daemon with one setting. Use it as a context manager."""

    def __init__(
        self, setting: Setting, config: Config, binary: pathlib.Path,
        daemons: pathlib.Path | None = None,
    ) -> None:  # fmt: skip
        self._setting, self.model = setting, config
        daemons = daemons or build_folder() / "daemons"
        self._folder = daemons / setting.name.replace(" ", "-").replace("/", "_")
        shutil.rmtree(self._folder, ignore_errors=True)
        uids = f"uids = {[os.getuid(), *setting.uids]}\n" if setting.uids else ""
        self._daemon = Daemon(binary, self._folder, ARENA + setting.config, "cpu", uids)
        self._count = 0

    def __enter__(self) -> Server:
        self.start()
        try:
            self.open()
        except BaseException:
            self.stop()
            raise
        return self

    def start(self) -> None:
        """The daemon alone: several processes may then `open`, each a client of its own."""
        self._daemon.start()

    def open(self) -> None:
        """Connects, and lets it learn."""
        spec = spec_of(self.model, "", "", "f16")
        if self._setting.drops:
            spec = dataclasses.replace(spec, masks=True)
        self._client = dynacompress.Client(str(self._daemon.socket), name="quality", deadline=120)
        self.context = self._client.open_context(spec, profile=self._setting.profile)
        self._learn()

    def __exit__(self, *_: object) -> None:
        del self.context, self._client
        self.stop()

    def stop(self) -> None:
        """Ends the daemon and drops its folder."""
        self._daemon.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def serve(self, capture: Capture, tokens: Sequence[int] = ()) -> Served:
        """Puts the capture's blocks, waits for the budget, fetches them back, deletes them.

        tokens: the prefix's ids, where a worker has to read it again.
        """
        setting = self._setting
        document = prepare(setting.worker, self.model, capture, tokens, setting.keep)
        if setting.ratio and setting.steady:
            self.delete(self.put(document))
        hashes = self.put(document)
        if setting.drops:  # a chain is decided a second after its last report
            time.sleep(2.0)
            self.settle()
        served = self.fetch(document.capture, hashes)
        self.delete(hashes)
        return served

    def put(self, document: Prepared, copies: int = 1) -> list[bytes]:
        """The names of its blocks, once the budget of `copies` such documents is kept to."""
        self.set_budget(document.capture, self._setting.ratio, copies)
        return self.put_only(document)

    def put_only(
        self, document: Prepared, seen: Callable[[list[bytes]], None] | None = None
    ) -> list[bytes]:
        """The same under the budget that there is. `seen`: called with the names put so far, each
        time that 512 more tokens are there and reported."""
        return self._put(document, "all" if self._setting.report else "none", seen)

    def fetch(self, capture: Capture, hashes: list[bytes]) -> Served:
        """Blocks of the capture as a reader gets them, and what they take."""
        rows = self.inspect(hashes)
        k, v, dropped = self._fetch(capture.k.shape, hashes)
        cells = self.model.layers * self.model.kv_heads
        beside = ENTRY_BLOCK + (HISTORY + ENTRY_CELL) * cells
        return Served(k, v, sum(row["bytes"] + beside for row in rows),
                      round(self._metrics()["dynacompress_basis_bytes"]), rows,
                      dropped if self._setting.drops else None)  # fmt: skip

    def fetch_all(self, hashes: list[bytes]) -> tuple[F16, F16]:
        """K and V of a chain of any length, nothing but those."""
        layers, heads = self.model.layers, self.model.kv_heads
        k, v, _ = self._fetch((layers, heads, BLOCK * len(hashes), self.model.head_dim), hashes)
        return k, v

    def append(self, hashes: list[bytes], k: F16, v: F16) -> None:
        """Puts one more block [layers][kv_heads][64][head_dim] behind those, and adds its name.

        The budget stays as it is, so what was there makes room.
        """
        name = dynacompress.block_hashes(range(BLOCK), f"more {self._count}".encode(), hashes[-1])
        kv = self._client.empty((2, *k.shape), np.float16)
        kv[0], kv[1] = k, v
        self.context.put(name, kv[0], kv[1], axes="lhtd", parent=hashes[-1],
                          first_index=len(hashes), quality=self._setting.quality)  # fmt: skip
        self.settle()
        hashes += name

    def _learn(self) -> None:
        for name in self._setting.learn_from:
            capture = captured(name, PREFIX, TAIL + CONTINUATION)
            self._client.set_budget(0)
            self.delete(self._put(Prepared(capture), self._setting.windows))
        wanted = self.model.layers if self._setting.learn_from else 0
        begin = time.monotonic()
        while self._metrics()["dynacompress_bases_learned_total"] < wanted:
            if time.monotonic() - begin > 60:
                raise RuntimeError(f"{self._setting.name}: no basis\n{self._daemon.tail()}")
            time.sleep(WAIT)

    def inspect(self, hashes: list[bytes]) -> list[dict[str, Any]]:
        """What the daemon says of each block: kinds, bits, importance by layer."""
        found = self._client.query("inspect", self.context.fingerprint, hashes, len(hashes))
        blocks: list[dict[str, Any]] = found["blocks"]
        return blocks

    def _put(
        self, document: Prepared, windows: str, seen: Callable[[list[bytes]], None] | None = None
    ) -> list[bytes]:
        """Puts and reports, 512 tokens at a time, and waits until nothing moves any more."""
        capture = document.capture
        tokens = capture.k.shape[2]
        self._count += 1
        names = dynacompress.block_hashes(range(tokens), f"document {self._count}".encode())
        kv = self._client.empty((2, *capture.k.shape), np.float16)
        kv[0], kv[1] = capture.k, capture.v
        first_of = {int(first): window for window, first in enumerate(capture.firsts)}
        for first in range(0, tokens, EVERY):
            last = min(first + EVERY, tokens)
            part = slice(first // BLOCK, last // BLOCK)
            parent = names[part.start - 1] if part.start else dynacompress.ROOT
            self.context.put(
                names[part], kv[0, :, :, first:last], kv[1, :, :, first:last], axes="lhtd",
                parent=parent, first_index=part.start, quality=self._setting.quality,
            )  # fmt: skip
            wanted = windows == "all" or (windows == "last" and last == tokens)
            if wanted and document.scores is None and last - BLOCK in first_of:
                self._report(document, names[part.stop - 1], first_of[last - BLOCK], last - first)
            if seen is not None:
                self.settle()
                seen(names[: part.stop])
        if document.scores is not None:
            self.context.report_columns(names[-1], document.scores, queries=1, advance=tokens)
        self.settle()
        return names

    def _report(self, document: Prepared, leaf: bytes, window: int, advance: int) -> None:
        """One window of queries, or the attention that it gave."""
        first = int(document.capture.firsts[window])
        queries = np.ascontiguousarray(document.capture.queries[window])
        if document.columns:
            mass = column_mass(
                self.model, queries, first, document.capture.k[:, :, : first + BLOCK]
            )
            self.context.report_columns(leaf, mass, queries=BLOCK, advance=advance)
        else:
            self.context.report_queries(leaf, first, queries, advance=advance)

    def set_budget(self, capture: Capture, ratio: float, copies: int) -> None:
        """The bytes that make (raw + tail) / (stored + tail) the ratio; bases come on top.

        Of a document of REFERENCE tokens: a shorter one gets the bytes a token that such a document
        has, as it would beside one under the same price. Else its open tail would weigh more.
        """
        if not ratio:
            self._client.set_budget(0)
            return
        sealed = ((REFERENCE + BLOCK) / ratio - BLOCK) / REFERENCE  # stored bytes a raw one
        basis = self._metrics()["dynacompress_basis_bytes"]
        self._client.set_budget(round(copies * capture.raw_bytes * sealed + basis))

    def _fetch(
        self, shape: tuple[int, ...], names: list[bytes]
    ) -> tuple[F16, F16, npt.NDArray[np.bool_]]:
        layers, heads, tokens, _ = shape
        dropped = np.zeros((layers, heads, tokens), bool)
        kv = self._client.empty((2, *shape), np.float16)
        kv[...] = np.nan  # whatever is not served must be seen
        done, patience = 0, PATIENCE
        while done < len(names):
            with self.context.lookup(names[done:]) as lease:
                if lease.run == 0:
                    raise RuntimeError(f"block {done} of {len(names)} is not held")
                part = slice(done * BLOCK, (done + lease.run) * BLOCK)
                try:
                    got = self.context.fetch(
                        lease, kv[0, :, :, part], kv[1, :, :, part], axes="lhtd",
                        masks=self._setting.drops,
                    )  # fmt: skip
                except dynacompress.Error as error:
                    patience -= 1
                    if error.code != "RETRY" or patience == 0:
                        raise
                    time.sleep(max(error.retry_after_ms / 1000, WAIT))
                    continue
                if self._setting.drops:
                    words = np.array(got["live"], np.uint64).reshape(lease.run, layers, heads, 1)
                    live = (words >> np.arange(BLOCK, dtype=np.uint64)) & np.uint64(1)
                    dropped[:, :, part] = live.transpose(1, 2, 0, 3).reshape(layers, heads, -1) == 0
                done += lease.run
        return kv[0].copy(), kv[1].copy(), dropped

    def delete(self, names: list[bytes]) -> None:
        """Drops blocks, so that the next document has the budget to itself."""
        self.context.delete(names)

    def _metrics(self) -> dict[str, float]:
        return self._daemon.metrics()

    def settle(self) -> None:
        """Until the gauges stand still: demotions done, reports folded in."""
        last: Any = None
        equal = 0
        for _ in range(2400):
            m = self._metrics()
            now = (m["dynacompress_charged_bytes"], m["dynacompress_price_log2"],
                   m["dynacompress_codec_seconds_total"], m["dynacompress_young_bytes"])  # fmt: skip
            received, folded, dropped = (
                m[f'dynacompress_reports_total{{result="{what}"}}']
                for what in ("received", "folded", "dropped")
            )
            waiting = received - folded - dropped
            waiting += m["dynacompress_young_bytes"]  # without a report they stay for some seconds
            equal = equal + 1 if now == last and waiting == 0 else 0
            last = now
            # Over its budget it may only be slow (other work on this machine), or at its floor.
            fits = m["dynacompress_charged_bytes"] <= m[BUDGET] * SLACK
            if equal >= (SETTLED if fits else OVER_BUDGET):
                return
            time.sleep(WAIT)
        raise RuntimeError(f"{self._setting.name}: the daemon does not come to rest")
