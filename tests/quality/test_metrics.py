"""Metrics on distributions whose answers are known."""

import numpy as np
import pytest

from metrics import bootstrap, compare, ratio


def _log(rows: list[list[float]]) -> np.ndarray:
    return np.log(np.asarray(rows, np.float32))


def test_equal_caches_lose_nothing() -> None:
    logs = _log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    same = compare(logs, logs, [0, 1])
    assert same.kl.max() == pytest.approx(0, abs=1e-7)
    assert same.retention == pytest.approx(1)
    assert same.top1.all()


def test_divergence_and_perplexity_by_hand() -> None:
    full, served = _log([[0.5, 0.5]]), _log([[0.25, 0.75]])
    got = compare(full, served, [0])
    assert got.kl[0] == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), abs=1e-6)
    assert got.ppl_full == pytest.approx(2) and got.ppl_served == pytest.approx(4)
    assert got.retention == pytest.approx(0.5)


def test_top1_sees_a_changed_winner() -> None:
    got = compare(_log([[0.6, 0.4], [0.6, 0.4]]), _log([[0.4, 0.6], [0.7, 0.3]]), [0, 0])
    assert got.top1.tolist() == [False, True]


def test_ratio_counts_the_tail_on_both_sides() -> None:
    assert ratio(1000, 250) == 4
    assert ratio(1000, 200, 50) == pytest.approx(1050 / 250)


def test_bootstrap_brackets_the_mean_and_repeats() -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    got = bootstrap(values)
    assert got == bootstrap(values)
    assert got.low < got.mean == 2.5 < got.high


def test_bootstrap_refuses_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="1 finite"):
        bootstrap([1.0, float("nan")])
