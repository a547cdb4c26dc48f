"""Profiles of Hugging Face folders: small models with random weights, of several architectures."""

import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from dynacompress.profile import make, moments, profile_file  # noqa: E402
from dynacompress.profile.model import open_model  # noqa: E402

WORDS = 200
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": WORDS, "max_position_embeddings": 1024,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
# Of each, what is different about its attention.
MODELS = {
    "LlamaConfig": {},
    "Qwen2Config": {},  # biases of q, k and v
    "Qwen3Config": {"head_dim": 32},  # norms of q and k; heads wider than the hidden size says
    "MistralConfig": {"sliding_window": 128, "head_dim": 16},
    "Gemma2Config": {"head_dim": 16, "sliding_window": 128},  # every other layer slides; soft caps
    "Gemma3TextConfig": {"head_dim": 32, "sliding_window": 128, "sliding_window_pattern": 3},
    "Phi3Config": {},  # q, k and v of one matrix
    "GPTNeoXConfig": {"rotary_pct": 0.5},  # partial RoPE
    "StableLmConfig": {},  # partial RoPE
}


@pytest.fixture(autouse=True)
def _words_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some kinds of model have a tokenizer of their own in transformers, whatever a folder says."""
    hf_model = pytest.importorskip("dynacompress.profile.hf_model")
    monkeypatch.setattr(
        hf_model.HfModel, "encode", lambda _self, text: [int(w[1:]) for w in text.split()]
    )


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
    config = getattr(transformers, request.param)(**{**SIZES, **MODELS[request.param]})
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith("bias"):
                weights.normal_()
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    words = {f"w{n}": n for n in range(WORDS - 1)} | {"?": WORDS - 1}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(tmp_path)
    return tmp_path


def _text(seed: int, tokens: int) -> str:
    numbers = np.random.default_rng(seed).integers(0, WORDS - 1, tokens)
    return " ".join(f"w{n}" for n in numbers)


def test_what_is_captured_is_what_the_model_attends_to(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    model = open_model(folder, tmp_path / "cache", device="cpu")
    ids = model.encode(_text(1, 640))
    assert len(ids) == 640
    captured = model.capture(ids[:512])
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        whole = torch.log_softmax(plain(torch.tensor([ids])).logits[0].float(), -1).numpy()
    after = model.go_on(captured, ids[512:])
    # K and V of 16 bits against 32; nothing else differs.
    np.testing.assert_allclose(after.log_p, whole[512:], atol=0.02)
    for layer in range(len(captured.k)):
        same = after.again(layer, captured.k[layer], captured.v[layer])
        np.testing.assert_allclose(same, after.log_p, atol=1e-4)
        k, v = (np.ascontiguousarray(x[layer][:, ::-1]) for x in (captured.k, captured.v))
        other = after.again(layer, k, v)
        assert np.abs(other - after.log_p).max() > 1e-3


def test_declared_rope_takes_positions_out_of_k(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """One word again and again: the first layer's K is one vector, turned."""
    model = open_model(folder, tmp_path / "cache", device="cpu")
    layer = model.spec.layers[0]
    rope = model.spec.ropes[layer.rope]
    if rope.kind == "none":
        pytest.skip("this model's frequencies are not plain")
    k = model.capture(model.encode("w7 " * 128)).k[0].astype(np.float64)
    plain = moments.Turn(rope, layer.head_dim)(k, -np.arange(128.0)[None, :])
    spread = np.abs(plain - plain[:, :1]).max() / np.abs(plain).max()
    assert spread < 0.01
    assert np.abs(k - k[:, :1]).max() / np.abs(k).max() > 0.1


def test_profile_of_the_folder_is_of_its_context(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    model = open_model(folder, tmp_path / "cache", device="cpu")
    options = make.Options(tokens=512, omega_texts=1, omega_prefix=256, omega_continuation=64)
    made = make.make_profile(model, [_text(2, 512), _text(3, 512)], options)
    again = profile_file.parse(profile_file.serialise(made))
    assert all(again.bases) and len(again.cells) == len(model.spec.layers)
    for layer, cells in zip(model.spec.layers, again.cells):
        assert len(cells) == layer.kv_heads
        assert all(cell.omega_k >= 0 and cell.omega_v >= 0 for cell in cells)
