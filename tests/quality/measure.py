"""One row of a table: a setting measured over passages and retrieval tasks, kept as JSON.

A row that was measured is not measured again: its file in the build folder is named by everything
that decided it (setting, passages, the daemon's binary).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from dynacompress.profile.llama import KvCache, best_llama

import retrieval
import texts
from build_folder import build_folder
from capture import BLOCK, CONTINUATION, PREFIX, TAIL, Capture, captured
from metrics import bootstrap, compare
from served import Served, Server, Setting
from smollm2 import F32, Tokenizer, load_model
from worker import Prepared

LONG_PREFIX, LONG_DOCUMENTS = 7616, 4  # 7,616 + 64 + 512: all that the model has positions for


@dataclasses.dataclass(frozen=True)
class Scope:
    """What a row is measured on. `seeds` of each retrieval kind."""

    passages: Sequence[str]
    seeds: int
    kinds: Sequence[str] = retrieval.KINDS


@dataclasses.dataclass
class Row:
    """Lists are over passages; `retrieval` by kind: [exact share] and [full cache's] over seeds.

    `bits`: of K and of V, [layers][kv_heads], over a document's tiles. `failed`: why there is none.
    """

    name: str
    ratio: list[float] = dataclasses.field(default_factory=list)
    retention: list[float] = dataclasses.field(default_factory=list)
    kl: list[float] = dataclasses.field(default_factory=list)
    top1: list[float] = dataclasses.field(default_factory=list)
    k_bits: list[float] = dataclasses.field(default_factory=list)
    v_bits: list[float] = dataclasses.field(default_factory=list)
    bits: list[dict[str, list[list[float]]]] = dataclasses.field(default_factory=list)
    basis_bytes: int = 0
    retrieval: dict[str, list[tuple[float, float]]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    failed: str = ""

    def points_below(self, kind: str) -> float:
        """Percentage points of exact matches that the full cache has and this one has not."""
        return 100 * float(np.mean([full - served for served, full in self.retrieval[kind]]))

    def cells(self) -> list[str]:
        """As a line of the table."""
        if self.failed:
            return [self.name, f"failed: {self.failed}", *[""] * (len(HEADER) - 2)]
        kl, kept = bootstrap(self.kl), bootstrap(self.retention)
        below = " / ".join(f"{self.points_below(kind):.0f}" for kind in self.retrieval)
        return [
            self.name, f"{np.mean(self.ratio):.2f}", kept.text(100, 2), kl.text(1, 4),
            f"{np.mean(self.top1):.1%}", f"{np.mean(self.k_bits):.2f} + {np.mean(self.v_bits):.2f}",
            below or "-", f"{self.basis_bytes:,}",
        ]  # fmt: skip


HEADER = [
    "setting", "ratio", "retention % (95 %)", "KL (95 %)", "top-1", "bits K + V",
    "retrieval: points below full", "basis bytes",
]  # fmt: skip


def markdown(rows: Sequence[Row], kinds: Sequence[str]) -> str:
    """The table; `kinds` names the retrieval columns. Below it, what the full cache answers."""
    head = [h + f" ({' / '.join(kinds)})" if h.startswith("retrieval") else h for h in HEADER]
    lines = [head, ["---"] * len(head), *(row.cells() for row in rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    full = {
        kind: np.mean([full for _, full in row.retrieval[kind]])
        for row in rows for kind in kinds if row.retrieval.get(kind)
    }  # fmt: skip
    said = ", ".join(f"{kind} {share:.0%}" for kind, share in full.items())
    return table + (f"\nExact answers of the full cache: {said}.\n" if said else "")


class Bench:
    """The model, loaded once, and what the full cache answers."""

    def __init__(self, binary: pathlib.Path) -> None:
        self.config, weights = load_model()
        self.model, self.tokenizer = best_llama(self.config, weights), Tokenizer()
        self._binary = binary
        self._digest = hashlib.sha256(binary.read_bytes()).hexdigest()

    def row(self, setting: Setting, scope: Scope) -> Row:
        """Measures, or reads what was measured."""
        path = build_folder() / "rows" / f"{self._key(setting, scope)}.json"
        if path.exists():
            return Row(**json.loads(path.read_text()))
        begin = time.monotonic()
        row = Row(setting.name, retrieval={kind: [] for kind in scope.kinds})
        with Server(setting, self.config, self._binary) as server:
            at_once = LONG_DOCUMENTS if setting.protocol == "long" else 1
            for at in range(0, len(scope.passages), at_once):
                self._document(server, setting, scope.passages[at : at + at_once], row)
            for kind in scope.kinds:
                for seed in range(scope.seeds):
                    row.retrieval[kind].append(self._retrieval(server, kind, seed))
        row.seconds = time.monotonic() - begin
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(row)))
        return row

    def _key(self, setting: Setting, scope: Scope) -> str:
        said = {
            **{f.name: str(getattr(setting, f.name)) for f in dataclasses.fields(setting)
               if f.name != "profile"},
            "profile": hashlib.sha256(setting.profile).hexdigest(),
            "scope": dataclasses.asdict(scope), "binary": self._digest,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]

    def _document(self, server: Server, setting: Setting, names: Sequence[str], row: Row) -> None:
        """Adds the passages of one document (several with protocol long) to the row."""
        if setting.protocol == "long":
            captures = [captured(name, LONG_PREFIX, TAIL + CONTINUATION) for name in names]
            put = [server.put(Prepared(one), copies=len(captures)) for one in captures]
            for one, hashes in zip(captures, put):
                self.continued(one, server.fetch(one, hashes), row)
            for hashes in put:
                server.delete(hashes)
            return
        (name,) = names
        capture = captured(name, PREFIX, TAIL + CONTINUATION)
        if setting.protocol == "decode":
            self._decode(server, capture, row)
        else:
            self.continued(capture, server.serve(capture, self._ids(name, PREFIX)), row)

    def _ids(self, name: str, tokens: int) -> list[int]:
        return self.tokenizer.encode(texts.passage(name).text())[:tokens]

    def continued(self, capture: Capture, served: Served, row: Row) -> None:
        """Adds what follows a passage, on its served cache, to the row."""
        cache = KvCache.of(served.k, served.v, room=len(capture.continuation))
        cache.dropped = _with_room(served, len(capture.continuation))
        log_p = self.model.log_probabilities(capture.continuation, cache)
        self._compared(capture, log_p, served, row)

    def _decode(self, server: Server, capture: Capture, row: Row) -> None:
        """Pseudo-decode: what comes after is sealed too, 64 tokens at a time, one block behind.

        The budget stays that of the prefix, so errors add up with every block.
        """
        hashes = server.put(Prepared(capture))
        first = server.fetch(capture, hashes)
        cache = KvCache.of(first.k, first.v, room=len(capture.continuation))
        logs, prefix = [], first.k.shape[2]
        for at in range(0, len(capture.continuation), BLOCK):
            logs.append(self.model.log_probabilities(capture.continuation[at : at + BLOCK], cache))
            if at:  # the newest block is the open tail, the one before it is sealed now
                part = slice(prefix + at - BLOCK, prefix + at)
                k, v = (x[:, :, part].astype(np.float16) for x in (cache.k, cache.v))
                server.append(hashes, k, v)
                whole = server.fetch_all(hashes)  # older blocks may have made room
                cache.k[:, :, : part.stop], cache.v[:, :, : part.stop] = whole
        self._compared(capture, np.concatenate(logs), server.fetch(capture, hashes), row)
        server.delete(hashes)

    def _compared(self, capture: Capture, log_p: F32, served: Served, row: Row) -> None:
        got = compare(capture.full[TAIL:], log_p[TAIL:], capture.targets[TAIL:])
        row.ratio.append(self._ratio(capture, served))
        row.retention.append(got.retention)
        row.kl.append(float(got.kl.mean()))
        row.top1.append(float(got.top1.mean()))
        row.k_bits.append(served.mean_bits("k"))
        row.v_bits.append(served.mean_bits("v"))
        row.basis_bytes = served.basis_bytes
        row.bits.append(served.bits_by_head())

    def _ratio(self, capture: Capture, served: Served) -> float:
        c = self.config
        tail = TAIL * c.layers * c.kv_heads * c.head_dim * 4
        if served.dropped is not None:
            # A tile's bytes do not shrink with its rows: what is compared is what its rows would
            # take at 16 bits, as the papers count, which flatters these policies.
            return (capture.raw_bytes + tail) / (capture.raw_bytes * served.kept + tail)
        return (capture.raw_bytes + tail) / (served.stored_bytes + tail)

    def _retrieval(self, server: Server, kind: str, seed: int) -> tuple[float, float]:
        asked = retrieval.question(self.model, self.tokenizer, kind, seed)
        ids = self.tokenizer.encode(asked.task.prefix)
        served = server.serve(asked.capture, ids[: asked.capture.k.shape[2]])
        room = len(asked.capture.continuation) + retrieval.ROOM
        score = retrieval.ask(self.model, self.tokenizer, asked, served.k, served.v,
                              _with_room(served, room))  # fmt: skip
        return score.exact, self.full(kind, seed)

    def full(self, kind: str, seed: int) -> float:
        """Exact matches of the full cache, kept in the build folder."""
        path = build_folder() / "captures" / f"full-{kind.replace(' ', '-')}-{seed}.json"
        if not path.exists():
            asked = retrieval.question(self.model, self.tokenizer, kind, seed)
            capture = asked.capture
            score = retrieval.ask(self.model, self.tokenizer, asked, capture.k, capture.v)
            path.write_text(json.dumps(dataclasses.asdict(score)))
        exact: float = json.loads(path.read_text())["exact"]
        return exact


def _with_room(served: Served, room: int) -> npt.NDArray[np.bool_] | None:
    """What nobody attends to, with `room` more tokens that everybody does."""
    if served.dropped is None:
        return None
    return np.pad(served.dropped, ((0, 0), (0, 0), (0, room)))


def profile_of(path: pathlib.Path) -> bytes:
    """A profile's bytes; says how to make one where it is missing."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: tests/quality/run profile makes it")
    return path.read_bytes()


def status_of(row: Row) -> dict[str, Any]:
    """Means of a row, for gates."""
    return {
        "ratio": float(np.mean(row.ratio)), "kl": float(np.mean(row.kl)),
        "retention": float(np.mean(row.retention)),
        "below": {kind: row.points_below(kind) for kind in row.retrieval},
    }  # fmt: skip
