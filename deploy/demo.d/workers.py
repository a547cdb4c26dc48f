"""The two inference workers of the demo. Each runs in a process of its own (remote.py).

A prefills texts with the numpy model and puts their KV; B never sees the text's prefix: it looks it
up, fetches it and continues on what it was served.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from kv_link import Link, block_hashes
from dynacompress.profile.llama import CHUNK, WINDOW, KvCache, Llama, QueryWindow
from metrics import compare
from remote import Progress
from smollm2 import F32, load_model

BLOCK = 64  # tokens
Kv = npt.NDArray[np.float16]


@dataclasses.dataclass(frozen=True)
class Document:
    """Tokens of a text: whole blocks, an open tail, and what follows.

    `salt` keeps two uses of one text apart.
    """

    name: str
    prefix: tuple[int, ...]  # whole blocks: what is put and served
    tail: tuple[int, ...]  # not a sealed block yet: every worker computes it itself
    continuation: tuple[int, ...]  # fed after that, teacher-forced
    targets: tuple[int, ...]  # that should be predicted at each token of the continuation
    salt: str = ""

    @property
    def blocks(self) -> int:
        """Whole blocks of the prefix."""
        return len(self.prefix) // BLOCK

    def hashes(self) -> list[bytes]:
        """Names of its blocks, in prefix order."""
        return block_hashes(self.prefix, self.salt)


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where the daemon listens and how K and V travel ('region', 'ucx' or 'socket')."""

    socket: str
    bulk: str


class _Worker:
    """What both have: the model, and a link to every daemon and way that was named."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._model = Llama(*load_model())
        self._links: dict[Endpoint, Link] = {}

    def _link(self, endpoint: Endpoint) -> Link:
        if endpoint not in self._links:
            self._links[endpoint] = Link(endpoint.socket, endpoint.bulk, self._model.config)
        return self._links[endpoint]

    def _kv(self, endpoint: Endpoint, tokens: int) -> Kv:
        """Memory that the daemon can reach: [layers][K, V][kv_heads][tokens][head_dim]."""
        c = self._model.config
        return self._link(endpoint).empty((c.layers, 2, c.kv_heads, tokens, c.head_dim))

    def _continue(self, document: Document, kv: Kv) -> F32:
        """Log-probabilities [continuation][vocabulary] on a cache of the prefix."""
        after = document.tail + document.continuation
        cache = KvCache.of(kv[:, 0], kv[:, 1], room=len(after))
        return self._model.log_probabilities(after, cache)[len(document.tail) :]


class Prefiller(_Worker):
    """Worker A."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress)
        self._kept: dict[str, tuple[Kv, list[QueryWindow]]] = {}

    def prefill(
        self, document: Document, endpoint: Endpoint, logs: pathlib.Path | None = None
    ) -> dict[str, float]:
        """Prefills and puts block by block, layer by layer, with a query window every 512 tokens.

        `logs`: where the full cache's log-probabilities of the continuation are to be saved.
        """
        total = document.blocks * BLOCK
        cache = KvCache.empty(self._model.config, total)
        kv, hashes, kept = self._kv(endpoint, total), document.hashes(), []
        begin, put_seconds = time.monotonic(), 0.0
        windows = range(CHUNK - WINDOW, total, CHUNK)
        for held, queries in self._model.prefill(document.prefix[:total], cache, windows):
            first = (held - 1) // CHUNK * CHUNK
            kv[:, 0, :, first:held] = cache.k[:, :, first:held]
            kv[:, 1, :, first:held] = cache.v[:, :, first:held]
            put_seconds += self._put(endpoint, kv, hashes, first // BLOCK, held // BLOCK)
            self._report(endpoint, hashes, queries)
            kept += queries
            self._progress(f"prefill and put {held} of {total} tokens", held / total)
        seconds = time.monotonic() - begin
        self._kept[document.name] = kv, kept
        if logs is not None:
            self._progress("the full cache's continuation, once", 1.0)
            np.save(logs, self._continue(document, kv))
        return {"bytes": kv.nbytes, "put_seconds": put_seconds, "seconds": seconds}

    def put_again(
        self, document: Document, endpoint: Endpoint, durability: str = "volatile"
    ) -> dict[str, float]:
        """Puts what a prefill of the same name left, perhaps elsewhere, and its query windows."""
        kept, windows = self._kept[document.name]
        kv, hashes = self._kv(endpoint, kept.shape[3]), document.hashes()
        kv[...] = kept
        self._progress(f"put {document.blocks} blocks over {endpoint.bulk}", 0.5)
        seconds = self._put(endpoint, kv, hashes, 0, document.blocks, durability)
        self._report(endpoint, hashes, windows)
        return {"bytes": kv.nbytes, "put_seconds": seconds}

    def _put(
        self,
        endpoint: Endpoint,
        kv: Kv,
        hashes: list[bytes],
        first: int,
        last: int,
        durability: str = "volatile",
    ) -> float:
        """Puts blocks first .. last, a layer a call; returns the seconds that it took."""
        begin = time.monotonic()
        for layer in range(self._model.config.layers):
            self._link(endpoint).put(layer, kv[layer], hashes, first, last, durability)
        return time.monotonic() - begin

    def _report(self, endpoint: Endpoint, hashes: list[bytes], windows: list[QueryWindow]) -> None:
        for window in windows:
            leaf = hashes[window.first // BLOCK]  # the block whose tokens asked
            self._link(endpoint).report_window(leaf, window.first, window.queries, advance=CHUNK)


class Reader(_Worker):
    """Worker B."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress)
        self._targets: dict[tuple[Endpoint, int], Kv] = {}
        self._served: Kv | None = None
        self._seen: dict[str, Kv] = {}

    def fetch(self, document: Document, endpoint: Endpoint) -> dict[str, Any]:
        """Looks the prefix up and fetches what is there; says from which tiers, and how fast.

        'unchanged' counts the blocks that are, byte for byte, what the last fetch of it brought.
        """
        link, hashes, tokens = self._link(endpoint), document.hashes(), document.blocks * BLOCK
        kv = self._targets.setdefault((endpoint, tokens), self._kv(endpoint, tokens))
        kv[...] = np.nan  # whatever is not served must be seen
        begin, done, hits = time.monotonic(), 0, dict.fromkeys(("host", "spill", "bank"), 0)
        while done < len(hashes):
            # A lease may hold less than was asked for; then the rest is another lease.
            with link.lookup(hashes[done:]) as lease:
                if lease.run == 0:
                    break
                for tier in lease.tiers:
                    hits[tier] += 1
                for layer in range(self._model.config.layers):
                    link.fetch(lease, layer, kv[layer], done)
                done += lease.run
            self._progress(f"fetched {done} of {len(hashes)} blocks", done / len(hashes))
        seconds = time.monotonic() - begin
        self._served = kv[:, :, :, : done * BLOCK].copy()
        unchanged = _equal_blocks(self._served, self._seen.get(document.salt + document.name))
        self._seen[document.salt + document.name] = self._served
        digest = hashlib.sha256(self._served.view(np.uint8).data).hexdigest()
        hits["miss"] = len(hashes) - done
        return {"hits": hits, "blocks": done, "bytes": self._served.nbytes, "seconds": seconds,
                "sha256": digest, "unchanged": unchanged}  # fmt: skip

    def go_on(self, document: Document, logs: pathlib.Path) -> dict[str, float]:
        """Continues on what the last `fetch` brought, against the full cache's answer."""
        self._progress(f"the open tail and {len(document.continuation)} tokens", 0.5)
        kv = self._served
        if kv is None or kv.shape[3] != document.blocks * BLOCK or not np.isfinite(kv).all():
            raise RuntimeError("the served cache is not complete")
        got = compare(np.load(logs), self._continue(document, kv), document.targets)
        return {"ppl_full": got.ppl_full, "ppl_served": got.ppl_served,
                "kl": float(got.kl.mean()), "top1": float(got.top1.mean())}  # fmt: skip

    def inspect(self, document: Document, endpoint: Endpoint) -> list[dict[str, Any]]:
        """What the daemon holds of the document: kinds, errors and history of every tile."""
        return self._link(endpoint).inspect(document.hashes())

    def delete(self, document: Document, endpoint: Endpoint) -> int:
        """Drops the document; returns how many blocks it had."""
        return self._link(endpoint).delete(document.hashes())

    def set_budget(self, size: int, endpoint: Endpoint) -> None:
        """Bytes that all blocks together may take; 0: as configured."""
        self._link(endpoint).set_budget(size)


def _equal_blocks(one: Kv, other: Kv | None) -> int:
    """How many leading blocks of both are the same bytes, block by block."""
    if other is None:
        return 0
    count = min(one.shape[3], other.shape[3]) // BLOCK
    a, b = (x[:, :, :, : count * BLOCK].view(np.uint16) for x in (one, other))
    shape = (*a.shape[:3], count, BLOCK * a.shape[4])
    return int((a.reshape(shape) == b.reshape(shape)).all(axis=(0, 1, 2, 4)).sum())
