from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cmd_eval.metrics.intervals import mean_interval, paired_interval


@pytest.mark.parametrize("hits", [0, 3, 12])
def test_proportions_without_groups_have_wilsons_interval(hits: int) -> None:
    """Wilson (1927), in the form of Agresti and Coull (1998), equation 2."""
    n, share, z = 12, hits / 12, 1.959964
    center, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    found = mean_interval(np.arange(12) < hits, [""] * 12)
    assert found.low == pytest.approx((center - half) / (1 + z**2 / n), abs=1e-6)
    assert found.high == pytest.approx((center + half) / (1 + z**2 / n), abs=1e-6)
    assert (found.value, found.unit, found.units) == (share, "videos", 12)


def test_other_values_without_groups_are_resampled() -> None:
    values = np.random.default_rng(2).standard_normal(9)
    rng = np.random.default_rng(7)
    rows = rng.integers(9, size=(50, 9))
    means = [sum(values[row] for row in draw) / 9 for draw in rows]
    low, high = np.quantile(means, [0.05, 0.95])
    found = mean_interval(values, seed=7, resamples=50, level=0.9)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found == mean_interval(values, seed=7, resamples=50, level=0.9)
    assert found != mean_interval(values, seed=8, resamples=50, level=0.9)


def test_groups_are_resampled_as_a_whole() -> None:
    values, groups = np.array([1.0, 1, 0, 0, 0, 1, 1]), ["a", "a", "b", "b", "b", "", ""]
    rng = np.random.default_rng(7)
    sums, counts = np.array([2.0, 0, 1, 1]), np.array([2, 3, 1, 1])
    rows = rng.integers(4, size=(50, 4))
    low, high = np.quantile([sums[row].sum() / counts[row].sum() for row in rows], [0.025, 0.975])
    found = mean_interval(values, groups, seed=7, resamples=50)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert (found.value, found.unit, found.units) == (pytest.approx(4 / 7), "groups", 4)


def coverage(draw: Callable[[np.random.Generator], tuple[np.ndarray, list[str]]], share: float, trials: int) -> float:
    """Return how often the interval contains the true share."""
    rng, covered = np.random.default_rng(3), 0
    for trial in range(trials):
        values, groups = draw(rng)
        found = mean_interval(values.astype(float), groups, seed=trial, resamples=400)
        covered += found.low <= share <= found.high
    return covered / trials


@pytest.mark.parametrize("correlation", [0.3, 0.6])
def test_coverage_with_groups_as_in_ucf101(correlation: float) -> None:
    """707 groups of 5 clips; within a group, hits are correlated. Intervals from single clips cover 72 to 77 %."""
    scale = 1 / correlation - 1

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        shares = rng.beta(0.7 * scale, 0.3 * scale, 707).repeat(5)
        return rng.random(707 * 5) < shares, [str(number // 5) for number in range(707 * 5)]

    assert 0.93 <= coverage(draw, 0.7, 600) <= 0.98
    assert coverage(lambda rng: (draw(rng)[0], [""] * 707 * 5), 0.7, 300) < 0.85


def test_coverage_of_few_independent_videos() -> None:
    assert 0.9 <= coverage(lambda rng: (rng.random(5) < 0.8, [""] * 5), 0.8, 2000) <= 0.98
    assert 0.93 <= coverage(lambda rng: (rng.random(54) < 0.1, [""] * 54), 0.1, 2000) <= 0.98


def test_extremes_are_not_certain() -> None:
    assert mean_interval(np.ones(5)).low == pytest.approx(0.566, abs=1e-3)
    # Three groups of which all videos are hits say no more than three videos.
    found = mean_interval(np.ones(9), list("aaabbbccc"))
    assert found == replace(mean_interval(np.ones(3)), unit="groups")
    assert mean_interval(np.zeros(9), list("aaabbbccc")) == replace(mean_interval(np.zeros(3)), unit="groups")
    # Of values in between, the share of other units that Wilson's interval allows may be all hits or all misses.
    other = mean_interval(np.zeros(4)).high
    found = mean_interval(np.tile([1.0, 0, 0, 0], 4), np.repeat(list("abcd"), 4).tolist())
    assert found.low == pytest.approx(0.25 * (1 - other))
    assert found.high == pytest.approx(0.25 + 0.75 * other)


@pytest.mark.parametrize("hits", [np.array([1, 0, 0, 1.0]), np.ones(4), np.zeros(4)])
def test_a_single_group_says_nothing_about_others(hits: np.ndarray) -> None:
    found = mean_interval(hits, ["a"] * 4)
    assert (found.value, found.low, found.high, found.units) == (hits.mean(), 0, 1, 1)
    found = paired_interval(hits, hits, ["a"] * 4)
    assert (found.value, found.low, found.high) == (0, -1, 1)


def test_paired_interval_of_a_single_group() -> None:
    hits = np.array([1, 0, 0, 1.0])
    found = paired_interval(hits, 1 - hits, ["a"] * 4)
    assert (found.value, found.low, found.high) == (0, -1, 1)


def test_paired_interval_of_equal_results_is_symmetric_and_not_of_zero_width() -> None:
    hits = np.ones(12)
    found = paired_interval(hits, hits, ["a", "b", "c"] * 4)
    assert (found.value, found.unit, found.units) == (0, "groups", 3)
    assert found.high == -found.low == pytest.approx(1 - mean_interval(hits, ["a", "b", "c"] * 4).low)


def test_paired_interval_of_gains_without_losses_is_not_that_of_a_proportion() -> None:
    better = paired_interval(np.array([1, 0, 0, 0, 0, 0.0]), np.zeros(6))
    worse = paired_interval(np.zeros(6), np.array([1, 0, 0, 0, 0, 0.0]))
    assert (better.low, better.high) == (-worse.high, -worse.low)


def test_paired_interval_resamples_pairs() -> None:
    base = np.random.default_rng(4).random(40) * 10
    gain = np.tile([0.1, 0.3], 20)
    found, alone = paired_interval(base + gain, base), mean_interval(gain)
    assert (found.low, found.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    assert 0.1 < found.low < 0.2 < found.high < 0.3
    constant = paired_interval(np.full(40, 0.5), np.full(40, 0.25))
    assert constant.low < 0.25 < constant.high
    with pytest.raises(ValueError, match="pairs"):
        paired_interval(base, base[:-1])


@pytest.mark.parametrize("arguments", [{"resamples": 0}, {"level": 1.0}])
def test_bootstrap_rejects_invalid_arguments(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        mean_interval(np.ones(3), **arguments)  # type: ignore[arg-type] # deliberately invalid
    with pytest.raises(ValueError, match="at least one item"):
        mean_interval(np.ones(0))
    with pytest.raises(ValueError, match="groups: 2, but there are 3 items"):
        mean_interval(np.ones(3), ["a", "b"])
