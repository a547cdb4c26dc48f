"""KvModel of a GGUF file: in numpy, on a GPU where torch has one."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile

import numpy as np

from .. import ContextSpec, Layer, Rope
from . import gguf_file
from .llama import KvCache, Llama, best_llama
from .model import F16, F32, Capture, window_firsts


def spec_of(config: gguf_file.Config, name: str, revision: str, dtype: str) -> ContextSpec:
    """The context that workers of this model open."""
    layer = Layer(
        config.kv_heads, config.head_dim, q_heads=config.heads, max_position=config.max_position
    )
    rope = Rope("half", [float(f) for f in config.inv_freq()])
    return ContextSpec(
        name or config.name, [layer] * config.layers, dtype=dtype,
        revision=revision or config.revision, ropes=[rope],
    )  # fmt: skip


class GgufModel:
    """See model.KvModel. The first use of a file writes 4 bytes a weight into `cache`."""

    def __init__(
        self, path: pathlib.Path, cache: pathlib.Path, *, name: str = "", revision: str = "",
        dtype: str = "", device: str = "auto",
    ) -> None:  # fmt: skip
        folder = cache / f"{path.stem}-{path.stat().st_size}"
        if not folder.exists():
            _dequantise_once(path, folder)
        self.config, weights = gguf_file.load(folder)
        self.spec = spec_of(self.config, name, revision, dtype or "f16")
        self.digest = self.config.revision
        self._tokenizer = gguf_file.Tokenizer(folder)
        self._model = best_llama(self.config, weights, device)

    def encode(self, text: str) -> list[int]:
        """See KvModel."""
        return self._tokenizer.encode(text)

    def capture(self, tokens: list[int]) -> Capture:
        """See KvModel."""
        cache = KvCache.empty(self.config, len(tokens))
        windows = []
        for _, some in self._model.prefill(tokens, cache, window_firsts(len(tokens))):
            windows += some
        queries = np.stack([w.queries for w in windows]).astype(np.float16)
        return Capture(
            k=list(cache.k.astype(np.float16)),
            v=list(cache.v.astype(np.float16)),
            queries=[queries[:, layer] for layer in range(self.config.layers)],
            firsts=np.array([w.first for w in windows]),
        )

    def go_on(self, capture: Capture, tokens: list[int]) -> _Continuation:
        """See KvModel."""
        return _Continuation(self._model, capture, np.asarray(tokens, np.int64))


class _Continuation:
    """Keeps what enters each layer, so that a replaced layer costs only those from it on."""

    def __init__(self, model: Llama, capture: Capture, tokens: np.ndarray) -> None:
        self._model, self._tokens = model, tokens
        self._cache = KvCache.of(np.stack(capture.k), np.stack(capture.v), room=len(tokens))
        self._held = self._cache.length
        self._inputs: list[F32] = []
        hidden, _ = model.forward(tokens, self._cache, inputs=self._inputs)
        self.log_p = model.logits_to_log(model.logits(hidden))

    def again(self, layer: int, k: F16, v: F16) -> F32:
        """See Continuation."""
        cache, prefix = self._cache, slice(0, self._held)
        before = cache.k[layer, :, prefix].copy(), cache.v[layer, :, prefix].copy()
        cache.k[layer, :, prefix], cache.v[layer, :, prefix] = k, v
        cache.length = self._held
        hidden, _ = self._model.forward(
            self._tokens, cache, inputs=self._inputs, first_layer=layer
        )
        cache.k[layer, :, prefix], cache.v[layer, :, prefix] = before
        return self._model.logits_to_log(self._model.logits(hidden))


def _dequantise_once(path: pathlib.Path, folder: pathlib.Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        gguf_file.dequantise(path, scratch / "model")
        try:
            os.rename(scratch / "model", folder)
        except OSError:
            if not folder.exists():  # another process was first: its result is as good
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
