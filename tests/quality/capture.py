"""What a worker has of a passage after its prefill: K, V, query windows, and where it would go on.

Captures are kept in the build folder, so that many configurations are compared on the same cache.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from build_folder import build_folder, make_once
from dynacompress.profile.llama import CHUNK, WINDOW, KvCache, Llama, best_llama
from smollm2 import F32, Tokenizer, load_model
from texts import passage

F16 = npt.NDArray[np.float16]
BLOCK = WINDOW
PREFIX, TAIL, CONTINUATION = 3072, BLOCK, 512  # tokens: put, at 16 bits behind it, continued


@dataclasses.dataclass(frozen=True)
class Capture:
    """K after RoPE and V [layers][kv_heads][prefix][head_dim], as the worker has them.

    `queries` [windows][layers][64][heads][head_dim] after RoPE, of the positions `firsts` and on.
    `full` is log p [continuation][vocabulary] on exactly this k and v; `targets` are the tokens
    that the text has there.
    """

    k: F16
    v: F16
    firsts: npt.NDArray[np.int64]
    queries: F16
    continuation: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    full: F32

    @property
    def raw_bytes(self) -> int:
        """Bytes of the prefix at 16 bits."""
        return self.k.nbytes + self.v.nbytes


def window_firsts(prefix: int) -> list[int]:
    """First positions of the windows that a worker sends: the last 64 of every 512 tokens, and of
    all when the last 512 are not whole."""
    ends = sorted({*range(CHUNK, prefix + 1, CHUNK), prefix})
    return [end - WINDOW for end in ends if end >= WINDOW]


def capture(
    model: Llama, tokens: npt.ArrayLike, prefix: int, continuation: int, log_p: bool = True
) -> Capture:
    """Prefills tokens[:prefix] and continues `continuation` tokens on the 16-bit cache.

    Without `log_p` the continuation is only remembered.
    """
    ids = np.asarray(tokens, np.int64)
    if len(ids) < prefix + continuation + 1:
        raise ValueError(f"{len(ids)} tokens are too few for {prefix} + {continuation} + 1")
    cache = KvCache.empty(model.config, prefix)
    windows = []
    for _, some in model.prefill(ids[:prefix], cache, window_firsts(prefix)):
        windows += some
    k, v = cache.k.astype(np.float16), cache.v.astype(np.float16)
    after = ids[prefix : prefix + continuation]
    return Capture(
        k=k,
        v=v,
        firsts=np.array([w.first for w in windows]),
        queries=np.stack([w.queries for w in windows]).astype(np.float16),
        continuation=after,
        targets=ids[prefix + 1 : prefix + continuation + 1],
        full=model.log_probabilities(after, KvCache.of(k, v, room=continuation))
        if log_p
        else np.empty((0, 0), np.float32),
    )


def save(path: pathlib.Path, made: Capture) -> None:
    """Writes it at once, or not at all."""

    def write(scratch: pathlib.Path) -> None:
        with scratch.open("wb") as file:
            np.savez(file, **vars(made))

    make_once(path, write)


def load(path: pathlib.Path) -> Capture:
    """What `save` wrote."""
    with np.load(path) as stored:
        arrays: dict[str, Any] = {f.name: stored[f.name] for f in dataclasses.fields(Capture)}
    return Capture(**arrays)


def captured(name: str, prefix: int = 3072, continuation: int = 256) -> Capture:
    """The capture of a passage, from the build folder if it is there."""
    path = build_folder() / "captures" / f"{name}-{prefix}-{continuation}.npz"
    if not path.exists():
        tokens = Tokenizer().encode(passage(name).text())
        save(path, capture(best_llama(*load_model()), tokens, prefix, continuation))
    return load(path)
