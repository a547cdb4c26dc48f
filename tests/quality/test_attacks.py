"""What another tenant says of its own blocks takes no bits from this one's (small documents)."""

import os
import pathlib
import shutil

import pytest

import attacks
import retrieval
from dynacompress.profile.llama import best_llama
from smollm2 import Config, Tokenizer, load_model

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="two tenants are two uids: needs root")


@pytest.fixture(scope="module")
def bits() -> dict[str, float]:
    """Mean bits of the victim's K and V by attack."""
    config, weights = load_model()
    model, tokenizer = best_llama(config, weights), Tokenizer()
    documents = [retrieval.question(model, tokenizer, "kv 60", seed).capture for seed in (0, 1)]
    return {name: _victims_bits(config, name, documents) for name in ("honest", "one token", "hits")}


def _victims_bits(config: Config, name: str, documents: list[attacks.Capture]) -> float:
    found = shutil.which("dynacompressd")
    daemon = pathlib.Path(found) if found else ROOT / "build/release/bin/dynacompressd"
    ours, theirs = attacks.share(name, config, daemon, *documents, learn=[])
    assert theirs is not None
    print(name, ours.mean_bits("k"), ours.mean_bits("v"), theirs.mean_bits("k"))
    return ours.mean_bits("k") + ours.mean_bits("v")


# Share of its bits that it keeps. Reuse, bounded in the price, still costs some: measured .75 to .77,
# without the bound .20.
@pytest.mark.parametrize(("attack", "least"), [("one token", 0.9), ("hits", 0.65)])
def test_a_hostile_tenant_takes_little(
    bits: dict[str, float], attack: str, least: float
) -> None:
    assert bits[attack] >= least * bits["honest"]
