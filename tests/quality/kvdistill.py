"""KV-Distill (arXiv 2503.10337) as a worker runs it: scorer, routed LoRA prefill, in numpy.

A scorer on the hidden states that enter layer `SCORED` of the untouched model ranks the prefix's
tokens; those that stay are the same in all layers and heads. The prefix is then read once more with
adapters: rsLoRA on K and V for all tokens, on Q and O for the selected ones only. What decodes
later is the untouched model. Scores go to the daemon, which drops the others (policy `kvdistill`).
kvdistill_train.py makes the weights.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import numpy.typing as npt
from dynacompress.profile.llama import CHUNK, KvCache, Llama, _rotate

from smollm2 import F32

WEIGHTS = pathlib.Path(__file__).with_name("smollm2-135m-kvdistill.npz")
SCORED = 6  # the layer whose input the scorer reads
PINS = 4  # first tokens, which always stay


@dataclasses.dataclass(frozen=True)
class Adapters:
    """float32 once loaded (float16 in the file); y += scale x' down' up', rows are outputs.

    Scorer: w2 relu(w1 x + b1) + b2 on x divided by its root mean square.
    """

    w1: F32  # [hidden][width]
    b1: F32  # [hidden]
    w2: F32  # [hidden]
    b2: F32  # []
    q_down: F32  # [layers][rank][width]
    q_up: F32  # [layers][heads head_dim][rank]
    k_down: F32
    k_up: F32  # [layers][kv_heads head_dim][rank]
    v_down: F32
    v_up: F32
    o_down: F32  # [layers][rank][heads head_dim]
    o_up: F32  # [layers][width][rank]
    scale: F32  # []

    def added(self, which: str, layer: int, x: F32) -> F32:
        """What adapter 'q', 'k', 'v' or 'o' adds for rows x [tokens][its input]."""
        down: F32 = getattr(self, f"{which}_down")[layer]
        up: F32 = getattr(self, f"{which}_up")[layer]
        out: F32 = (x @ down.T) @ up.T * self.scale
        return out


def load(path: pathlib.Path = WEIGHTS) -> Adapters:
    """FileNotFoundError says how the file is made."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: kvdistill_train.py makes it")
    with np.load(path) as stored:
        names = [f.name for f in dataclasses.fields(Adapters)]
        return Adapters(**{name: stored[name].astype(np.float32) for name in names})


def scores(model: Llama, adapters: Adapters, tokens: npt.ArrayLike) -> F32:
    """The scorer's rank of each token of a prefix [tokens]; higher stays longer."""
    ids = np.asarray(tokens, np.int64)
    x = _run(model, ids, KvCache.empty(model.config, len(ids)), SCORED)
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(model.config.rms_epsilon))
    out: F32 = np.maximum(x @ adapters.w1.T + adapters.b1, 0) @ adapters.w2 + adapters.b2
    return out


def select(ranks: F32, keep: int) -> npt.NDArray[np.bool_]:
    """The first PINS tokens and the best `keep` - PINS others, the earlier of equals."""
    order = np.argsort(-ranks[PINS:], kind="stable")[: max(keep - PINS, 0)] + PINS
    chosen = np.zeros(len(ranks), bool)
    chosen[:PINS] = True
    chosen[order] = True
    return chosen


def prefill(
    model: Llama, adapters: Adapters, tokens: npt.ArrayLike, selected: npt.NDArray[np.bool_]
) -> tuple[F32, F32]:
    """K after RoPE and V [layers][kv_heads][tokens][head_dim], with the adapters."""
    ids = np.asarray(tokens, np.int64)
    cache = KvCache.empty(model.config, len(ids))
    _run(model, ids, cache, model.config.layers, adapters, selected)
    return cache.k, cache.v


def _run(
    model: Llama, ids: npt.NDArray[np.int64], cache: KvCache, layers: int,
    adapters: Adapters | None = None, selected: npt.NDArray[np.bool_] | None = None,
) -> F32:  # fmt: skip
    """What enters layer `layers` [tokens][width]; fills that many layers of the cache."""
    out = []
    for start in range(0, len(ids), CHUNK):
        part = slice(start, start + CHUNK)
        routed = None if selected is None else selected[part]
        out.append(_chunk(model, ids[part], cache, start, layers, adapters, routed))
    return np.concatenate(out)


def _chunk(
    model: Llama, ids: npt.NDArray[np.int64], cache: KvCache, start: int, layers: int,
    adapters: Adapters | None, routed: npt.NDArray[np.bool_] | None,
) -> F32:  # fmt: skip
    c, w, n = model.config, model._w, len(ids)
    cos, sin = (t[start : start + n, None] for t in (model._cos, model._sin))
    x: F32 = w.embedding[ids]
    q_width, kv_width = c.heads * c.head_dim, c.kv_heads * c.head_dim
    for layer in range(layers):
        h = model._norm(x, w.attention_norm[layer])
        qkv = model._rows(lambda rows: rows @ w.qkv[layer].T, h)
        q, k, v = np.split(qkv, [q_width, q_width + kv_width], axis=1)
        if adapters is not None and routed is not None:
            q[routed] += adapters.added("q", layer, h[routed])
            k, v = k + adapters.added("k", layer, h), v + adapters.added("v", layer, h)
        q = _rotate(q.reshape(n, c.heads, c.head_dim), cos, sin)
        k = _rotate(k.reshape(n, c.kv_heads, c.head_dim), cos, sin)
        cache.k[layer, :, start : start + n] = k.swapaxes(0, 1)
        cache.v[layer, :, start : start + n] = v.reshape(n, c.kv_heads, -1).swapaxes(0, 1)
        attended = model._attend(q, cache.k[layer], cache.v[layer], start, None)
        add = model._rows(lambda rows: rows @ w.attention_out[layer].T, attended)
        if adapters is not None and routed is not None:
            add[routed] += adapters.added("o", layer, attended[routed])
        x = x + add
        x += model._rows(lambda rows: model._ffn(rows, layer), x)
    return x
