"""The same forward pass as llama.py, in torch: on a GPU minutes instead of hours.

float32 throughout, without TF32, so that it stays within rounding of the numpy one. The cache
stays numpy (what the daemon reads and writes); it is copied to the device for each call.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from .gguf_file import F32, Config, Weights
from .llama import KvCache, Llama


class TorchLlama(Llama):
    """See llama.Llama; device as torch names it."""

    def __init__(self, config: Config, weights: Weights, device: str = "cuda") -> None:
        super().__init__(config, weights, threads=1)
        torch.backends.cuda.matmul.allow_tf32 = False
        self._device = torch.device(device)
        self._t = {
            name: torch.tensor(np.asarray(array), device=self._device)
            for name, array in vars(weights).items()
            if array is not None
        }
        self._angles = tuple(
            torch.tensor(table, device=self._device) for table in (self._cos, self._sin)
        )

    @torch.inference_mode()
    def logits(self, hidden: F32) -> F32:
        """[tokens][vocabulary] from `forward`'s [tokens][width]."""
        matrix = self._t.get("output", self._t["embedding"])
        return self._up(hidden).matmul(matrix.T).cpu().numpy()

    @torch.inference_mode()
    def log_probabilities(self, tokens: npt.ArrayLike, cache: KvCache) -> F32:
        """See Llama; the softmax is taken on the device."""
        hidden, _ = self.forward(np.asarray(tokens, np.int64), cache)
        matrix = self._t.get("output", self._t["embedding"])
        return torch.log_softmax(self._up(hidden).matmul(matrix.T), -1).cpu().numpy()

    @torch.inference_mode()
    def forward(
        self,
        tokens: npt.NDArray[np.int64],
        cache: KvCache,
        keep_queries: bool = False,
        inputs: list[F32] | None = None,
        first_layer: int = 0,
    ) -> tuple[F32, F32]:
        """See Llama."""
        c, w, n = self.config, self._t, len(tokens)
        start, cache.length = cache.length, cache.length + n
        if cache.length > cache.k.shape[2]:
            raise ValueError(f"cache of {cache.k.shape[2]} tokens cannot hold {cache.length}")
        cos, sin = (t[start : start + n, None] for t in self._angles)
        kept = np.empty((c.layers if keep_queries else 0, n, c.heads, c.head_dim), np.float32)
        future = torch.ones(n, start + n, dtype=torch.bool, device=self._device).triu(start + 1)
        resumed = bool(inputs)
        x = self._up(inputs[first_layer]) if inputs else w["embedding"][self._up(tokens)]
        q_width, kv_width = c.heads * c.head_dim, c.kv_heads * c.head_dim
        for layer in range(first_layer, c.layers):
            if inputs is not None and not resumed:
                inputs.append(x.cpu().numpy())
            qkv = self._normed(x, w["attention_norm"][layer]) @ w["qkv"][layer].T
            if "qkv_bias" in w:
                qkv = qkv + w["qkv_bias"][layer]
            q = qkv[:, :q_width].view(n, c.heads, c.head_dim)
            k = qkv[:, q_width : q_width + kv_width].view(n, c.kv_heads, c.head_dim)
            v = qkv[:, q_width + kv_width :].view(n, c.kv_heads, c.head_dim)
            if "q_norm" in w:
                q, k = self._normed(q, w["q_norm"][layer]), self._normed(k, w["k_norm"][layer])
            q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
            held = slice(start, start + n)
            cache.k[layer, :, held] = k.transpose(0, 1).cpu().numpy()
            cache.v[layer, :, held] = v.transpose(0, 1).cpu().numpy()
            if keep_queries:
                kept[layer] = q.cpu().numpy()
            keys = torch.cat([self._up(cache.k[layer, :, :start]), k.transpose(0, 1)], 1)
            values = torch.cat([self._up(cache.v[layer, :, :start]), v.transpose(0, 1)], 1)
            rows = q.view(n, c.kv_heads, c.group, c.head_dim).permute(1, 2, 0, 3)
            scores = rows @ keys[:, None].transpose(-1, -2) * c.head_dim**-0.5
            scores = scores.masked_fill(future, -torch.inf)
            if cache.dropped is not None:
                gone = self._up(cache.dropped[layer, :, : start + n])[:, None, None]
                scores = scores.masked_fill(gone, -torch.inf)
            scores = scores.softmax(-1)
            mixed = (scores @ values[:, None]).permute(2, 0, 1, 3).reshape(n, -1)
            x = x + mixed @ w["attention_out"][layer].T
            both = self._normed(x, w["ffn_norm"][layer]) @ w["gate_up"][layer].T
            gate, up = both[:, : c.ffn_width], both[:, c.ffn_width :]
            x = x + (F.silu(gate) * up) @ w["down"][layer].T
        return self._normed(x, w["output_norm"]).cpu().numpy(), kept

    def _up(self, array: npt.NDArray) -> torch.Tensor:  # type: ignore[type-arg]
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _normed(self, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        mean = x.square().mean(-1, keepdim=True) + self.config.rms_epsilon
        return x / mean.sqrt() * gain


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
