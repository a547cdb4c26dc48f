"""Retrieval on a served cache: the prefixes' captures, kept in the build folder, and their scores."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import numpy.typing as npt
from dynacompress.profile.llama import KvCache, Llama

import tasks
import texts
from build_folder import build_folder
from capture import BLOCK, F16, Capture, capture, load, save
from smollm2 import Tokenizer

OTHER_TEXT = "letters"  # a tuning passage, between the facts and the questions of far retrieval
ROOM = 128  # tokens of a question and its answer
KINDS = ("kv 60", "kv 120", "far 60")
OTHER_KINDS = ("multi-key 30", "variables 20x2", "frequent 12")


@dataclasses.dataclass(frozen=True)
class Question:
    """A task, the capture of its sealed blocks, and the tokens of its open tail."""

    task: tasks.Task
    capture: Capture


@functools.cache
def _far_text() -> str:
    tokenizer = Tokenizer()
    return tokenizer.decode(tokenizer.encode(texts.passage(OTHER_TEXT).text())[: tasks.FAR_TOKENS])


def task_of(kind: str, seed: int) -> tasks.Task:
    """One of KINDS or OTHER_KINDS."""
    name, size = kind.split()
    if name == "kv":
        return tasks.key_values(int(size), seed)
    if name == "far":
        return tasks.key_values(int(size), seed, other_text="\n" + _far_text())
    if name == "multi-key":
        return tasks.multi_key(int(size), seed)
    if name == "variables":
        chains, hops = size.split("x")
        return tasks.variable_tracking(int(chains), int(hops), seed)
    if name == "frequent":
        return tasks.frequent_words(int(size), seed)
    raise ValueError(f"no task '{kind}'")


def question(model: Llama, tokenizer: Tokenizer, kind: str, seed: int) -> Question:
    """The task and its capture; 64 to 127 tokens of the prefix are the open tail."""
    task = task_of(kind, seed)
    ids = tokenizer.encode(task.prefix)
    sealed = (len(ids) - BLOCK) // BLOCK * BLOCK
    path = build_folder() / "captures" / f"{kind.replace(' ', '-')}-{seed}.npz"
    if not path.exists():
        save(path, capture(model, ids + [0], sealed, len(ids) - sealed, log_p=False))
    return Question(task, load(path))


def ask(
    model: Llama, tokenizer: Tokenizer, asked: Question, k: F16, v: F16,
    dropped: npt.NDArray[np.bool_] | None = None,
) -> tasks.Score:  # fmt: skip
    """Scores a served form (or the capture's own) of the sealed blocks; the tail is recomputed."""
    tail = asked.capture.continuation
    cache = KvCache.of(k, v, room=len(tail) + ROOM)
    cache.dropped = dropped
    model.forward(np.asarray(tail, np.int64), cache)
    return tasks.ask(model, tokenizer, asked.task, cache)
