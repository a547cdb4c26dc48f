"""The numpy prototype: sizes that formats.md states, and how near a served tile comes."""

import numpy as np
import pytest

import prototype
from smollm2 import Config

D = 64
CONFIG = Config(
    layers=1,
    heads=9,
    kv_heads=3,
    head_dim=D,
    width=576,
    ffn_width=16,
    vocabulary=16,
    max_position=512,
    rope_base=100_000.0,
    rms_epsilon=1e-5,
    name="",
    revision="",
)


def _identity(widths: dict[float, list[int]]) -> prototype.HeadBasis:
    eye = np.eye(D, dtype=np.float16)
    return prototype.HeadBasis(np.zeros(D, np.float16), eye, eye, widths)


@pytest.mark.parametrize(("width", "pair"), [(8, 8576), (4, 4416), (2, 2304)])
def test_bytes_of_a_pair(width: int, pair: int) -> None:
    gains = 128 if width == 8 else 64
    tile = prototype.k_tile_bytes([width] * 8, run=8, d=D)
    assert tile + gains + 8 * D * width == pair


def test_bytes_of_a_document() -> None:
    bases = [[_identity({2: [2] * 8})] * 3] * 30
    blocks = prototype.stored_bytes(bases, 2, 2, blocks=2) - prototype.stored_bytes(bases, 2, 2, 1)
    assert blocks == 30 * (7168 + 14 * 3) + 96


def test_served_tiles_are_near_and_pins_are_exact() -> None:
    seed = 11
    print(f"seed {seed}")
    x = np.random.default_rng(seed).standard_normal((128, D)).astype(np.float16)
    rope = prototype.rope_of(CONFIG)
    basis = _identity({2: [2] * 8, 4: [4] * 8})
    wrong = {}
    for target in (2, 4):
        served = prototype.serve_k(x, basis, target, rope)
        np.testing.assert_array_equal(served[:4], x[:4])
        wrong[target] = float(np.mean((served[4:].astype(float) - x[4:]) ** 2))
    assert wrong[4] < 0.02 < wrong[2] < 0.25
    errors = [
        np.mean((prototype.serve_v(x, bits)[4:].astype(float) - x[4:]) ** 2) for bits in (8, 4, 2)
    ]
    assert errors[0] < 1e-3 < errors[1] < 0.03 < errors[2] < 0.2
    np.testing.assert_array_equal(prototype.serve_v(x, 2)[:4], x[:4])
