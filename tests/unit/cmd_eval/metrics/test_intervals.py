from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from cmd_eval.metrics.intervals import Interval, bootstrap_interval, paired_bootstrap


@pytest.mark.parametrize("items", [12, 150])
def test_bootstrap_agrees_with_another_stream(items: int) -> None:
    hits = np.random.default_rng(items).random(items) < 0.8
    found = bootstrap_interval(hits.astype(float), resamples=20_000)
    other = scipy.stats.bootstrap(
        (hits.astype(float),), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.value == pytest.approx(hits.mean())
    # Means of hits are multiples of 1 / items; two bootstraps may differ by one step.
    assert found.low == pytest.approx(other.low, abs=1.01 / items)
    assert found.high == pytest.approx(other.high, abs=1.01 / items)


def test_bootstrap_matches_a_loop_over_samples() -> None:
    values = np.random.default_rng(2).standard_normal(9)
    rng = np.random.default_rng(7)
    rows = rng.integers(9, size=(50, 9))
    means = [sum(values[row] for row in draw) / 9 for draw in rows]
    low, high = np.quantile(means, [0.05, 0.95])
    found = bootstrap_interval(values, seed=7, resamples=50, level=0.9)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found == bootstrap_interval(values, seed=7, resamples=50, level=0.9)
    assert found != bootstrap_interval(values, seed=8, resamples=50, level=0.9)


def test_bootstrap_has_about_the_nominal_coverage() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        found = bootstrap_interval((rng.random(100) < 0.7).astype(float), seed=trial, resamples=400)
        covered += found.low <= 0.7 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_equal_values_give_an_interval_of_zero_width() -> None:
    assert bootstrap_interval(np.ones(5)).as_json() == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert bootstrap_interval(np.array([0.25])) == Interval(value=0.25, low=0.25, high=0.25)


def test_paired_bootstrap_resamples_pairs() -> None:
    base = np.random.default_rng(4).random(40) * 10
    found = paired_bootstrap(base + 1, base)
    assert found.low == pytest.approx(1)
    assert found.high == pytest.approx(1)
    with pytest.raises(ValueError, match="pairs"):
        paired_bootstrap(base, base[:-1])


@pytest.mark.parametrize("arguments", [{"resamples": 0}, {"level": 1.0}])
def test_bootstrap_rejects_invalid_arguments(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        bootstrap_interval(np.ones(3), **arguments)  # type: ignore[arg-type] # deliberately invalid
    with pytest.raises(ValueError, match="at least one item"):
        bootstrap_interval(np.ones(0))
