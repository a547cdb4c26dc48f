"""Training text of KV-Distill: the packages of the tuning passages, without a passage's own words.

    python3 kvdistill_data.py TOKENS.npy        (uint16 token ids, one document after the other)

A document that shares twenty words in a row with any passage, tuning or reporting, is left out:
reporting passages only report, and tuning passages are what training is watched on.
"""

from __future__ import annotations

import pathlib
import random
import sys
from collections.abc import Iterator

import numpy as np

import texts
from smollm2 import Tokenizer

RUN = 20  # words
LEAST, MOST = 2_000, 400_000  # characters of a document; longer ones are cut
SUFFIXES = {".html", ".txt", ".py", ".go", ".h", ".pod", ".js", ".json", ".md", ".1", ".gz", ""}
SEPARATOR = "<|endoftext|>"


def _runs(text: str) -> Iterator[int]:
    words = text.split()
    return (hash(tuple(words[i : i + RUN])) for i in range(len(words) - RUN + 1))


def documents() -> Iterator[str]:
    """In a fixed order; of files that differ in form alone (.html, .txt, .gz) one."""
    known = {run for one in texts.passages() for run in _runs(one.text())}
    seen: set[int] = set()
    for package in sorted({p.package for p in texts.passages("tuning")}):
        folder = texts.unpack(package)
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not path.is_file() or path.suffix not in SUFFIXES:
                continue
            try:
                text = texts.read_member(path)[:MOST]
            except (OSError, EOFError):  # a .gz of something else
                continue
            if len(text) < LEAST or text.count("\ufffd") > len(text) // 200 or "\0" in text:
                continue
            runs = set(_runs(text))
            if runs & known or len(runs & seen) > len(runs) // 4:
                continue
            seen |= runs
            yield text


def main() -> int:
    out = pathlib.Path(sys.argv[1])
    found = list(documents())
    random.Random(1).shuffle(found)
    tokenizer = Tokenizer()
    ids: list[np.ndarray] = []  # type: ignore[type-arg]
    for number, text in enumerate(found):
        ids.append(np.array(tokenizer.encode(text + SEPARATOR), np.uint16))
        if number % 100 == 0:
            done = f"{number / len(found):4.0%}  {sum(map(len, ids)):,} tokens"
            print(done, file=sys.stderr, flush=True)
    np.save(out, np.concatenate(ids))
    print(f"{len(found)} documents, {sum(map(len, ids)):,} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
