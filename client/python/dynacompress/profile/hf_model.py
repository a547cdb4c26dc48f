"""KvModel of a Hugging Face folder: any causal model of transformers with standard K and V.

Queries and keys are taken where attention begins (after RoPE, norms and biases), through an
attention function of our own, so that nothing has to be known of the architecture. RoPE is declared
when the model says its frequencies and they are plain; else the context declares none (`post`).
"""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any

import numpy as np
import torch
import transformers

from .. import ContextSpec, Layer, Rope
from .model import F16, F32, WINDOW, Capture, window_firsts

_NAMES = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}
_SEEN: list[tuple[int, Any, Any, Any]] | None = None  # (layer, q, k, v) while a capture runs


def _attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
    if _SEEN is not None:
        _SEEN.append((module.layer_idx, query, key, value))
    plain = transformers.AttentionInterface()["sdpa"]
    return plain(module, query, key, value, mask, **options)


class HfModel:
    """See model.KvModel. Loads the folder as it is; nothing is downloaded."""

    def __init__(
        self, path: pathlib.Path, *, name: str = "", revision: str = "", dtype: str = "",
        device: str = "auto",
    ) -> None:  # fmt: skip
        transformers.AttentionInterface.register("dynacompress", _attention)
        mask = transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
        mask.register("dynacompress", mask["sdpa"])
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        load = transformers.AutoModelForCausalLM.from_pretrained
        self._model = load(
            path, local_files_only=True, attn_implementation="dynacompress", dtype=torch.float32
        ).to(self._device)
        self._model.eval()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        self.digest = _digest(path)
        config = self._model.config.get_text_config()
        stored = dtype or _NAMES.get(getattr(config, "dtype", None) or torch.bfloat16, "bf16")
        self.spec = _spec(self._model, config, name or path.resolve().name,
                          revision or self.digest, stored)  # fmt: skip

    def encode(self, text: str) -> list[int]:
        """See KvModel."""
        return list(self._tokenizer(text)["input_ids"])

    @torch.inference_mode()
    def capture(self, tokens: list[int]) -> Capture:
        """See KvModel."""
        global _SEEN
        _SEEN = []
        try:
            self._model(torch.tensor([tokens], device=self._device), use_cache=False)
            seen = sorted(_SEEN, key=lambda row: row[0])
        finally:
            _SEEN = None
        firsts = np.array(window_firsts(len(tokens)))

        def host(x: Any) -> F16:
            return x[0].to(torch.float16).cpu().numpy()

        queries = []
        for _, q, _, _ in seen:  # [heads][tokens][d] -> [windows][64][heads][d]
            rows = host(q).swapaxes(0, 1)
            queries.append(np.stack([rows[first : first + WINDOW] for first in firsts]))
        return Capture(
            k=[host(k) for _, _, k, _ in seen], v=[host(v) for _, _, _, v in seen],
            queries=queries, firsts=firsts,
        )  # fmt: skip

    def go_on(self, capture: Capture, tokens: list[int]) -> _Continuation:
        """See KvModel."""
        return _Continuation(self._model, capture, tokens, self._device)


class _Continuation:
    """The prefix is a cache of transformers, made anew for each answer."""

    def __init__(self, model: Any, capture: Capture, tokens: list[int], device: Any) -> None:
        self._model, self._device = model, device
        self._tokens = torch.tensor([tokens], device=device)
        self._kv = [(self._up(k), self._up(v)) for k, v in zip(capture.k, capture.v)]
        self.log_p = self._answer(self._kv)

    def again(self, layer: int, k: F16, v: F16) -> F32:
        """See Continuation."""
        kv = list(self._kv)
        kv[layer] = self._up(k), self._up(v)
        return self._answer(kv)

    def _up(self, array: F16) -> Any:
        return torch.from_numpy(array).to(self._device, torch.float32)[None]

    @torch.inference_mode()
    def _answer(self, kv: list[tuple[Any, Any]]) -> F32:
        cache = transformers.DynamicCache()
        for layer, (k, v) in enumerate(kv):
            cache.update(k, v, layer)
        logits = self._model(self._tokens, past_key_values=cache, use_cache=True).logits[0]
        return torch.log_softmax(logits.float(), -1).cpu().numpy()


def _digest(path: pathlib.Path) -> str:
    """Of the weights' files: their names, sizes and first and last mebibyte."""
    found = hashlib.sha256()
    files = sorted([*path.glob("*.safetensors"), *path.glob("*.bin")])
    if not files:
        raise ValueError(f"{path}: no weights (*.safetensors, *.bin)")
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as data:
            found.update(data.read(1 << 20))
            data.seek(max(0, size - (1 << 20)))
            found.update(data.read())
    return found.hexdigest()[:16]


def _inv_freq(model: Any, kind: str, head_dim: int) -> list[float]:
    """Frequencies of layers of that kind; empty where they are not known or not plain."""
    for module in model.modules():
        for attribute in (f"{kind}_inv_freq", "inv_freq"):
            found = getattr(module, attribute, None)
            if isinstance(found, torch.Tensor) and 0 < 2 * found.numel() <= head_dim:
                scale = getattr(module, f"{kind}_attention_scaling",
                                getattr(module, "attention_scaling", 1.0))  # fmt: skip
                return [float(f) for f in found] if scale == 1.0 else []
    return []


def _spec(model: Any, config: Any, name: str, revision: str, dtype: str) -> ContextSpec:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    unknown = sorted({*kinds} - {"full_attention", "sliding_attention"})
    if unknown:
        raise ValueError(f"layers of kind {', '.join(unknown)} have no K and V of the usual kind")
    ropes: list[Rope] = []
    layers = []
    for kind in kinds:
        frequencies = _inv_freq(model, kind, head_dim)
        rope = Rope("half", frequencies) if frequencies else Rope()
        if rope not in ropes:
            ropes.append(rope)
        sliding = kind == "sliding_attention"
        layers.append(Layer(
            getattr(config, "num_key_value_heads", heads), head_dim, q_heads=heads,
            max_position=config.max_position_embeddings, rope=ropes.index(rope),
            kind="sliding" if sliding else "full", window=config.sliding_window if sliding else 0,
        ))  # fmt: skip
    return ContextSpec(name, layers, dtype=dtype, revision=revision, ropes=ropes)
