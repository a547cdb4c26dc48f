"""What a profile needs of a model: K, V and queries of a text, and the text's likelihood again.

Two kinds of source: a GGUF file (numpy; torch on the GPU if both are there) and a Hugging Face
folder (torch and transformers). `open_model` chooses by what the path is.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import ContextSpec

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
WINDOW = 64  # queries of one window, and tokens of one block
EVERY = 512  # tokens from one window to the next


@dataclasses.dataclass(frozen=True)
class Capture:
    """One text as the cache sees it. Lists are over layers, whose shapes may differ.

    k after RoPE and v [kv_heads][tokens][head_dim]; queries [windows][64][heads][head_dim] after
    RoPE, at positions firsts[window] and on.
    """

    k: list[F16]
    v: list[F16]
    queries: list[F16]
    firsts: npt.NDArray[np.int64]


class Continuation(Protocol):
    """The likelihood of what follows a captured prefix, with one layer of the cache replaced."""

    log_p: F32  # [tokens][vocabulary] in nats, on the cache as it was captured

    def again(self, layer: int, k: F16, v: F16) -> F32:
        """log_p with this layer's K and V of the prefix instead."""


class KvModel(Protocol):
    """A model that profiles are made of."""

    spec: ContextSpec
    digest: str  # of the weights: what the profile says it was measured on

    def encode(self, text: str) -> list[int]:
        """Token ids."""

    def capture(self, tokens: list[int]) -> Capture:
        """Runs the model over whole blocks of tokens."""

    def go_on(self, capture: Capture, tokens: list[int]) -> Continuation:
        """Teacher-forced on `tokens`, behind the captured prefix."""


def window_firsts(tokens: int) -> list[int]:
    """First positions of the query windows: the last 64 of every 512 tokens."""
    ends = range(EVERY, tokens + 1, EVERY) if tokens >= EVERY else [tokens // WINDOW * WINDOW]
    return [end - WINDOW for end in ends]


def open_model(path: pathlib.Path, cache: pathlib.Path, **options: Any) -> KvModel:
    """Of a GGUF file or a Hugging Face folder. ValueError says what is missing or not known.

    cache: folder for dequantised weights. Options: name, revision, dtype (of the context; default:
    the file's own name and digest, f16 for GGUF, the folder's dtype), device ("auto", "cpu", "cuda").
    """
    if path.is_file():
        from .gguf_model import GgufModel

        return GgufModel(path, cache, **options)
    if (path / "config.json").is_file():
        from .hf_model import HfModel

        return HfModel(path, **options)
    raise ValueError(f"{path}: neither a GGUF file nor a folder with config.json")
