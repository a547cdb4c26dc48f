"""The forward pass on a tiny random model, against a plain double-precision one written apart."""

import numpy as np
import pytest

from dynacompress.profile.llama import KvCache, Llama
from smollm2 import Config, Weights, undo_gguf_permutation

CONFIG = Config(
    layers=2, heads=4, kv_heads=2, head_dim=8, width=32, ffn_width=48, vocabulary=50,
    max_position=2048, rope_base=100.0, rms_epsilon=1e-5, name="tiny", revision="0",
)  # fmt: skip


def _weights(seed: int) -> Weights:
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    c = CONFIG

    def some(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    qkv_rows = (c.heads + 2 * c.kv_heads) * c.head_dim
    return Weights(
        embedding=some(c.vocabulary, c.width) * 5,
        attention_norm=1 + some(c.layers, c.width),
        qkv=some(c.layers, qkv_rows, c.width),
        attention_out=some(c.layers, c.width, c.heads * c.head_dim),
        ffn_norm=1 + some(c.layers, c.width),
        gate_up=some(c.layers, 2 * c.ffn_width, c.width),
        down=some(c.layers, c.width, c.ffn_width),
        output_norm=1 + some(c.width),
    )


def _plain(weights: Weights, tokens: np.ndarray) -> np.ndarray:
    """Logits [tokens][vocabulary], one token and head at a time."""
    c = CONFIG
    w = {name: np.asarray(array, np.float64) for name, array in vars(weights).items()}

    def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean() + c.rms_epsilon) * gain

    def turn(x: np.ndarray, position: int) -> np.ndarray:
        half = c.head_dim // 2
        z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * c.inv_freq().astype(np.float64))
        return np.concatenate([z.real, z.imag])

    past: list[list[np.ndarray]] = [[] for _ in range(c.layers)]
    logits = []
    for position, token in enumerate(tokens):
        x = w["embedding"][token]
        for layer in range(c.layers):
            heads = (w["qkv"][layer] @ norm(x, w["attention_norm"][layer])).reshape(-1, c.head_dim)
            for h in range(c.heads + c.kv_heads):
                heads[h] = turn(heads[h], position)
            past[layer].append(heads)
            mixed = []
            for h in range(c.heads):
                at = c.heads + h // c.group
                keys = np.array([row[at] for row in past[layer]])
                values = np.array([row[at + c.kv_heads] for row in past[layer]])
                score = np.exp(keys @ heads[h] / np.sqrt(c.head_dim))
                mixed.append(score / score.sum() @ values)
            x = x + w["attention_out"][layer] @ np.concatenate(mixed)
            gate, up = np.split(w["gate_up"][layer] @ norm(x, w["ffn_norm"][layer]), 2)
            x = x + w["down"][layer] @ (gate / (1 + np.exp(-gate)) * up)
        logits.append(w["embedding"] @ norm(x, w["output_norm"]))
    return np.array(logits)


def test_against_a_plain_model_in_chunks() -> None:
    weights = _weights(3)
    tokens = np.random.default_rng(4).integers(0, CONFIG.vocabulary, 600)
    expected = _plain(weights, tokens)
    model, cache = Llama(CONFIG, weights), KvCache.empty(CONFIG, 600)
    steps = list(model.prefill(tokens[:520], cache, windows=[448]))
    assert [held for held, _ in steps] == [512, 520]
    window = steps[0][1][0]
    assert window.first == 448 and window.queries.shape == (2, 64, 4, 8)
    logs = model.log_probabilities(tokens[520:], cache)
    reference = expected[520:] - np.log(np.exp(expected[520:]).sum(-1, keepdims=True))
    np.testing.assert_allclose(logs, reference, atol=2e-4)
    assert cache.length == 600


def test_a_served_cache_continues_like_its_own() -> None:
    weights = _weights(5)
    tokens = np.random.default_rng(6).integers(0, CONFIG.vocabulary, 96)
    model, cache = Llama(CONFIG, weights), KvCache.empty(CONFIG, 96)
    for _ in model.prefill(tokens[:64], cache):
        pass
    served = KvCache.of(cache.k[:, :, :64], cache.v[:, :, :64], room=32)
    np.testing.assert_array_equal(
        model.log_probabilities(tokens[64:], cache), model.log_probabilities(tokens[64:], served)
    )
    damaged = KvCache.of(cache.k[:, :, :64], -cache.v[:, :, :64], room=32)
    logs = model.log_probabilities(tokens[64:], damaged)
    assert np.abs(logs - model.log_probabilities(tokens[64:], served_again(served))).max() > 0.1


def served_again(cache: KvCache) -> KvCache:
    """The same cache before the continuation."""
    return KvCache(cache.k, cache.v, 64)


def test_a_full_cache_is_refused() -> None:
    model = Llama(CONFIG, _weights(7))
    with pytest.raises(ValueError, match="cannot hold"):
        model.log_probabilities([1, 2, 3], KvCache.empty(CONFIG, 2))


def test_permutation_is_undone() -> None:
    rows = np.arange(16, dtype=np.float32)[:, None]
    stored = rows.reshape(2, 2, 4, 1).swapaxes(1, 2).reshape(16, 1)  # as GGUF writers do it
    np.testing.assert_array_equal(undo_gguf_permutation(stored, 2), rows)
