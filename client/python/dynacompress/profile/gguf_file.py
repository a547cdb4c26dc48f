"""Llama-like models out of a GGUF file: configuration, float32 weights, tokenizer.

Known architectures: llama, qwen2, qwen3 (with llama 3.1's scaled frequencies). The file is
dequantised once into a folder of float32 arrays, which every process then maps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

# Pieces that byte-level BPE is applied to, by GGUF's name of the rule.
_PIECES = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


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
    rope_factors: tuple[float, ...] = ()  # [head_dim / 2] that frequencies are divided by, or none

    @property
    def group(self) -> int:
        """Query heads that share one key and value head."""
        return self.heads // self.kv_heads

    def inv_freq(self) -> F32:
        """Angles per position [head_dim / 2] of the `half` rotary embedding, in radians."""
        exponent = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        factors = np.asarray(self.rope_factors or 1.0, np.float64)
        return np.asarray(self.rope_base**-exponent / factors, np.float32)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Float32, rows are outputs (y = x @ w.T); stacked over layers but for the ends.

    What a model has not got is None: its own output matrix, biases of q, k and v, norms of q and k.
    """

    embedding: F32  # [vocabulary][width], also the output matrix unless there is one
    attention_norm: F32  # [layers][width]
    qkv: F32  # [layers][(heads + 2 kv_heads) head_dim][width], q and k by rotary halves
    attention_out: F32  # [layers][width][heads head_dim]
    ffn_norm: F32  # [layers][width]
    gate_up: F32  # [layers][2 ffn_width][width]
    down: F32  # [layers][width][ffn_width]
    output_norm: F32  # [width]
    output: F32 | None = None  # [vocabulary][width]
    qkv_bias: F32 | None = None  # [layers][(heads + 2 kv_heads) head_dim]
    q_norm: F32 | None = None  # [layers][head_dim]
    k_norm: F32 | None = None  # [layers][head_dim]


def undo_gguf_permutation(rows: F32, heads: int) -> F32:
    """Rows of q or k [heads head_dim][width] from GGUF's interleaved rotary pairs to halves.

    GGUF stores the pair (i, i + head_dim / 2) of a llama's head as neighbouring rows 2 i, 2 i + 1.
    """
    out, width = rows.shape
    pairs = rows.reshape(heads, out // heads // 2, 2, width)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(out, width)


class _Reader:
    """Tensors and fields of one GGUF file."""

    def __init__(self, path: pathlib.Path) -> None:
        import gguf

        self._gguf = gguf
        self._reader = gguf.GGUFReader(str(path))
        self.tensors = {t.name: t for t in self._reader.tensors}
        self.architecture = self._reader.fields["general.architecture"].contents()

    def field(self, name: str, otherwise: Any = None) -> Any:
        found = self._reader.fields.get(name.replace("ARCH", self.architecture))
        return otherwise if found is None else found.contents()

    def value(self, name: str) -> F32:
        tensor = self.tensors[name]
        return np.asarray(
            self._gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32
        )


def _config(reader: _Reader, path: pathlib.Path) -> Config:
    if reader.architecture not in ("llama", "qwen2", "qwen3"):
        raise ValueError(
            f"{path}: architecture '{reader.architecture}' is not known here (llama, qwen2, qwen3);"
            " give the model's Hugging Face folder instead"
        )
    heads = reader.field("ARCH.attention.head_count")
    width = reader.field("ARCH.embedding_length")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    factors = reader.value("rope_freqs.weight") if "rope_freqs.weight" in reader.tensors else ()
    return Config(
        layers=reader.field("ARCH.block_count"),
        heads=heads,
        kv_heads=reader.field("ARCH.attention.head_count_kv", heads),
        head_dim=reader.field("ARCH.attention.key_length", width // heads),
        width=width,
        ffn_width=reader.field("ARCH.feed_forward_length"),
        vocabulary=len(reader.field("tokenizer.ggml.tokens")),
        max_position=reader.field("ARCH.context_length"),
        rope_base=reader.field("ARCH.rope.freq_base", 10000.0),
        rms_epsilon=reader.field("ARCH.attention.layer_norm_rms_epsilon"),
        name=path.name.split(".")[0],
        revision=digest[:16],
        rope_factors=tuple(float(x) for x in factors),
    )


def dequantise(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes what `load` reads into a new folder: 4 bytes a weight."""
    reader = _Reader(path)
    config = _config(reader, path)

    def stack(make_layer: Any) -> F32:
        return np.stack([make_layer(f"blk.{layer}.") for layer in range(config.layers)])

    def halves(name: str, heads: int) -> F32:
        rows = reader.value(name)
        if reader.architecture != "llama":
            return rows
        flat = rows.reshape(rows.shape[0], -1)
        return undo_gguf_permutation(flat, heads).reshape(rows.shape)

    def qkv(prefix: str, kind: str) -> F32:
        q = halves(f"{prefix}attn_q.{kind}", config.heads)
        k = halves(f"{prefix}attn_k.{kind}", config.kv_heads)
        return np.concatenate([q, k, reader.value(f"{prefix}attn_v.{kind}")])

    arrays = {
        "embedding": reader.value("token_embd.weight"),
        "attention_norm": stack(lambda p: reader.value(p + "attn_norm.weight")),
        "qkv": stack(lambda p: qkv(p, "weight")),
        "attention_out": stack(lambda p: reader.value(p + "attn_output.weight")),
        "ffn_norm": stack(lambda p: reader.value(p + "ffn_norm.weight")),
        "gate_up": stack(
            lambda p: np.concatenate(
                [reader.value(p + "ffn_gate.weight"), reader.value(p + "ffn_up.weight")]
            )
        ),
        "down": stack(lambda p: reader.value(p + "ffn_down.weight")),
        "output_norm": reader.value("output_norm.weight"),
    }
    if "output.weight" in reader.tensors:
        arrays["output"] = reader.value("output.weight")
    if "blk.0.attn_q.bias" in reader.tensors:
        arrays["qkv_bias"] = stack(lambda p: qkv(p, "bias"))
    for which in ("q", "k"):
        if f"blk.0.attn_{which}_norm.weight" in reader.tensors:
            name = f"attn_{which}_norm.weight"
            arrays[f"{which}_norm"] = stack(lambda p, name=name: reader.value(p + name))
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=1))
    words = {
        "tokens": reader.field("tokenizer.ggml.tokens"),
        "types": reader.field("tokenizer.ggml.token_type"),
        "merges": reader.field("tokenizer.ggml.merges", []),
        "pre": reader.field("tokenizer.ggml.pre", ""),
        "add_bos": bool(reader.field("tokenizer.ggml.add_bos_token", False)),
        "bos": reader.field("tokenizer.ggml.bos_token_id", -1),
    }
    (folder / "tokenizer.json").write_text(json.dumps(words))


def load(folder: pathlib.Path) -> tuple[Config, Weights]:
    """Of a folder of `dequantise`; the weights are mapped read-only, so processes share them."""
    values = json.loads((folder / "config.json").read_text())
    config = Config(**values | {"rope_factors": tuple(values.get("rope_factors", ()))})
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
    return config, Weights(**arrays)


class Tokenizer:
    """The byte-level BPE of a folder of `dequantise`. A BOS is put in front if the model has one."""

    def __init__(self, folder: pathlib.Path) -> None:
        import tokenizers

        words = json.loads((folder / "tokenizer.json").read_text())
        pre = tokenizers.pre_tokenizers
        if words["pre"] == "smollm":
            pieces = [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
        elif words["pre"] in _PIECES:
            rule = tokenizers.Regex(_PIECES[words["pre"]])
            pieces = [
                pre.Split(rule, "isolated"),
                pre.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        else:
            raise ValueError(
                f"unknown tokenizer rule '{words['pre']}' in the GGUF file (smollm,"
                f" {', '.join(_PIECES)}); give the model's Hugging Face folder instead"
            )
        vocabulary = {token: index for index, token in enumerate(words["tokens"])}
        merges = [tuple(pair.split(" ")) for pair in words["merges"]]
        self._bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
        self._bpe.pre_tokenizer = pre.Sequence(pieces)
        self._bpe.decoder = tokenizers.decoders.ByteLevel()
        control = [t for t, kind in zip(words["tokens"], words["types"]) if kind == 3]
        self._bpe.add_special_tokens(control)
        self._front = [words["bos"]] if words["add_bos"] else []

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        return self._front + list(self._bpe.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: list[int]) -> str:
        """Text of the ids, control tokens included."""
        return str(self._bpe.decode(tokens, skip_special_tokens=False))
