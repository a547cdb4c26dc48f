"""KV-Distill's numpy forward against torch's numbers, which kvdistill_train.py left in the fixture."""

import pathlib

import numpy as np
import pytest

import kvdistill
from dynacompress.profile.llama import Llama
from smollm2 import load_model

FIXTURE = pathlib.Path(__file__).with_name("kvdistill_fixture.npz")


@pytest.fixture(scope="module")
def model() -> Llama:
    return Llama(*load_model())


def test_scores_and_adapted_values_are_those_of_torch(model: Llama) -> None:
    adapters = kvdistill.load()
    with np.load(FIXTURE) as stored:
        want = {name: stored[name] for name in stored.files}
    ranks = kvdistill.scores(model, adapters, want["tokens"])
    np.testing.assert_allclose(ranks, want["scores"], atol=2e-3)
    # Two that are nearly equal may change places; which ones are kept is taken from the fixture.
    assert np.mean(kvdistill.select(ranks, 48) == want["kept"]) > 0.98
    k, v = kvdistill.prefill(model, adapters, want["tokens"], want["kept"])
    for got, name in ((k, "k"), (v, "v")):
        np.testing.assert_allclose(got[want["layers"], :, -8:], want[name], atol=5e-3)


def test_selection_keeps_the_first_and_the_best() -> None:
    ranks = np.array([-9, -9, -9, -9, 1, 3, 2, 3, 0], np.float32)
    assert np.flatnonzero(kvdistill.select(ranks, 6)).tolist() == [0, 1, 2, 3, 5, 7]
    assert np.flatnonzero(kvdistill.select(ranks, 7)).tolist() == [0, 1, 2, 3, 5, 6, 7]


def test_without_adapters_it_is_the_model(model: Llama) -> None:
    from dynacompress.profile.llama import KvCache

    adapters = kvdistill.load()
    ids = np.arange(100, 700)
    cache = KvCache.empty(model.config, len(ids))
    for start in range(0, len(ids), 512):
        model.forward(ids[start : start + 512], cache)
    none = type(adapters)(**{n: x * np.float32("_up" not in n) for n, x in vars(adapters).items()})
    k, v = kvdistill.prefill(model, none, ids, np.ones(len(ids), bool))
    np.testing.assert_array_equal(k, cache.k)
    np.testing.assert_array_equal(v, cache.v)
