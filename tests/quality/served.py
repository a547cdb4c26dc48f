"""A cache as the daemon serves it: put with statistics under a budget, waited for, fetched back.

One daemon a `Setting`; a document is put, served and deleted before the next one comes.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import dynacompress
import numpy as np
import numpy.typing as npt
from dynacompress.profile.gguf_model import spec_of

from build_folder import REPOSITORY, build_folder
from capture import F16, Capture
from smollm2 import Config

sys.path.insert(0, str(REPOSITORY / "deploy" / "demo.d"))
from daemon import Daemon  # noqa: E402

BLOCK = 64
REFERENCE = 3072  # tokens of the document that a ratio is said of
EVERY = 512  # tokens between two query windows
ENTRY_BLOCK, ENTRY_CELL, HISTORY = 96, 6, 8  # bytes of the store beside segments (formats 6)
SETTLED = 4  # equal readings of the gauges in a row
WAIT = 0.05  # s between two
ARENA = '[arena]\nbytes = "1 GiB"\nprefault = false\n'  # several daemons run side by side


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a row of a table is made.

    ratio: raw over stored bytes that the budget asks for, the open tail counted in both; 0: none.
    profile: a profile's bytes. learn_from: captures that go before, for the daemon to learn from.
    keys_only: no query window goes with those. steady: the price is already where the budget puts
    it when the document comes (else the document fills an empty arena and is demoted on the way).
    """

    name: str
    ratio: float
    profile: bytes = b""
    learn_from: Sequence[Capture] = ()
    keys_only: bool = False
    steady: bool = True
    config: str = ""  # TOML beside the defaults
    quality: str = "balanced"
    report: bool = True  # windows of the document itself
    drops: bool = False  # a policy that drops tokens: the reader masks them, see Served.kept


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

    def mean_bits(self, which: str) -> float:
        """Of 'k' or 'v': bits an element, over all tiles."""
        return float(np.mean([row[which + "_bits"] for b in self.blocks for row in b["rows"]]))


class Server:
    """One daemon with one setting. Use it as a context manager."""

    def __init__(self, setting: Setting, config: Config, binary: pathlib.Path) -> None:
        self._setting, self._model = setting, config
        self._folder = build_folder() / "daemons" / setting.name.replace(" ", "-").replace("/", "_")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._daemon = Daemon(binary, self._folder, ARENA + setting.config)
        self._count = 0

    def __enter__(self) -> Server:
        self._daemon.start()
        spec = spec_of(self._model, "", "", "f16")
        if self._setting.drops:
            spec = dataclasses.replace(spec, masks=True)
        self._client = dynacompress.Client(str(self._daemon.socket), name="quality", deadline=120)
        self._context = self._client.open_context(spec, profile=self._setting.profile)
        self._learn()
        return self

    def __exit__(self, *_: object) -> None:
        del self._context, self._client
        self._daemon.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def serve(self, capture: Capture) -> Served:
        """Puts the capture's blocks, waits for the budget, fetches them back, deletes them."""
        setting = self._setting
        if setting.ratio and setting.steady:
            self._deleted(self._put(capture, setting.report, setting.ratio))
        hashes = self._put(capture, setting.report, setting.ratio)
        if setting.drops:  # a chain is decided a second after its last report
            time.sleep(2.0)
            self._settle()
        blocks = self._client.query("inspect", self._context.fingerprint, hashes, len(hashes))
        rows = blocks["blocks"]
        k, v, dropped = self._fetch(capture, hashes)
        cells = self._model.layers * self._model.kv_heads
        beside = ENTRY_BLOCK + (HISTORY + ENTRY_CELL) * cells
        served = Served(k, v, sum(row["bytes"] + beside for row in rows),
                        round(self._metrics()["dynacompress_basis_bytes"]), rows,
                        dropped if setting.drops else None)  # fmt: skip
        self._deleted(hashes)
        return served

    def _learn(self) -> None:
        for capture in self._setting.learn_from:
            self._deleted(self._put(capture, not self._setting.keys_only, 0))
        wanted = self._model.layers if self._setting.learn_from else 0
        begin = time.monotonic()
        while self._metrics()["dynacompress_bases_learned_total"] < wanted:
            if time.monotonic() - begin > 60:
                raise RuntimeError(f"{self._setting.name}: no basis\n{self._daemon.tail()}")
            time.sleep(WAIT)

    def _put(self, capture: Capture, report: bool, ratio: float) -> list[bytes]:
        """Puts and reports, 512 tokens at a time, and waits until nothing moves any more."""
        tokens = capture.k.shape[2]
        self._count += 1
        names = dynacompress.block_hashes(range(tokens), f"document {self._count}".encode())
        kv = self._client.empty((2, *capture.k.shape), np.float16)
        kv[0], kv[1] = capture.k, capture.v
        self._set_budget(capture, ratio)
        first_of = {int(first): window for window, first in enumerate(capture.firsts)}
        for first in range(0, tokens, EVERY):
            last = min(first + EVERY, tokens)
            part = slice(first // BLOCK, last // BLOCK)
            parent = names[part.start - 1] if part.start else dynacompress.ROOT
            self._context.put(
                names[part], kv[0, :, :, first:last], kv[1, :, :, first:last], axes="lhtd",
                parent=parent, first_index=part.start, quality=self._setting.quality,
            )  # fmt: skip
            if report and last - BLOCK in first_of:
                queries = np.ascontiguousarray(capture.queries[first_of[last - BLOCK]])
                self._context.report_queries(
                    names[part.stop - 1], last - BLOCK, queries, advance=last - first
                )
        self._settle()
        return names

    def _set_budget(self, capture: Capture, ratio: float) -> None:
        """The bytes that make (raw + tail) / (stored + tail) the ratio; bases come on top.

        Of a document of REFERENCE tokens: a shorter one gets the bytes a token that such a document
        has, as it would beside one under the same price. Else its open tail would weigh more.
        """
        if not ratio:
            self._client.set_budget(0)
            return
        sealed = ((REFERENCE + BLOCK) / ratio - BLOCK) / REFERENCE  # stored bytes a raw one
        basis = self._metrics()["dynacompress_basis_bytes"]
        self._client.set_budget(round(capture.raw_bytes * sealed + basis))

    def _fetch(
        self, capture: Capture, names: list[bytes]
    ) -> tuple[F16, F16, npt.NDArray[np.bool_]]:
        layers, heads, tokens, _ = capture.k.shape
        dropped = np.zeros((layers, heads, tokens), bool)
        kv = self._client.empty((2, *capture.k.shape), np.float16)
        kv[...] = np.nan  # whatever is not served must be seen
        done = 0
        while done < len(names):
            with self._context.lookup(names[done:]) as lease:
                if lease.run == 0:
                    raise RuntimeError(f"block {done} of {len(names)} is not held")
                part = slice(done * BLOCK, (done + lease.run) * BLOCK)
                got = self._context.fetch(
                    lease, kv[0, :, :, part], kv[1, :, :, part], axes="lhtd",
                    masks=self._setting.drops,
                )  # fmt: skip
                if self._setting.drops:
                    words = np.array(got["live"], np.uint64).reshape(lease.run, layers, heads, 1)
                    live = (words >> np.arange(BLOCK, dtype=np.uint64)) & np.uint64(1)
                    dropped[:, :, part] = live.transpose(1, 2, 0, 3).reshape(layers, heads, -1) == 0
                done += lease.run
        return kv[0].copy(), kv[1].copy(), dropped

    def _deleted(self, names: list[bytes]) -> None:
        self._context.delete(names)

    def _metrics(self) -> dict[str, float]:
        return self._daemon.metrics()

    def _settle(self) -> None:
        """Until the gauges stand still: demotions done, reports folded in."""
        last: Any = None
        equal = 0
        for _ in range(600):
            m = self._metrics()
            now = (m["dynacompress_charged_bytes"], m["dynacompress_price_log2"],
                   m["dynacompress_codec_seconds_total"])  # fmt: skip
            received, folded, dropped = (
                m[f'dynacompress_reports_total{{result="{what}"}}']
                for what in ("received", "folded", "dropped")
            )
            waiting = received - folded - dropped
            equal = equal + 1 if now == last and waiting == 0 else 0
            last = now
            if equal >= SETTLED:
                return
            time.sleep(WAIT)
        raise RuntimeError(f"{self._setting.name}: the daemon does not come to rest")
