"""Interval of the difference between paired runs, compared with scipy and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cmd_eval.metrics.paired import Difference, Pair, mean_difference


def pair(column: str, seed: int, plain: list[int], motion: list[int], first: int = 0) -> Pair:
    videos = tuple(f"{column}-{first + n}" for n in range(len(plain)))
    return Pair(
        split_column=column, seed=seed, videos=videos, plain_N=np.array(plain, bool), changed_N=np.array(motion, bool)
    )


def test_difference_is_the_mean_over_pairs() -> None:
    pairs = [pair("split1", 0, [1, 0, 0, 0], [1, 1, 0, 0]), pair("split1", 1, [0, 0, 0, 1], [1, 1, 0, 0])]
    found = mean_difference(pairs)
    assert found.value == pytest.approx((0.25 + 0.25) / 2)
    assert found.pairs == 2
    assert found.error_of_runs == 0
    # Contributions of the four videos to the mean: (0 + 1, 1 + 1, 0, 0 - 1) / 8.
    expected = math.sqrt(4) * np.std([1 / 8, 2 / 8, 0, -1 / 8], ddof=1)
    assert found.error_of_videos == pytest.approx(expected)
    half = stats.t.ppf(0.975, 1) * expected
    assert (found.low, found.high) == pytest.approx((max(0.25 - half, -1), min(0.25 + half, 1)))


def test_without_variation_between_videos_it_is_students_interval() -> None:
    # All videos of a pair have the same difference, so only the runs vary.
    pairs = [pair("s", 0, [0] * 50, [1] * 50), pair("s", 1, [0] * 50, [0] * 50), pair("s", 2, [0] * 50, [1] * 50)]
    found = mean_difference(pairs)
    assert found.error_of_videos == pytest.approx(0)
    low, high = stats.t.interval(0.95, 2, loc=2 / 3, scale=stats.sem([1, 0, 1]))
    assert (found.low, found.high) == pytest.approx((low, min(high, 1)))


def test_single_pair_has_the_interval_of_its_videos() -> None:
    rng = np.random.default_rng(0)
    plain, motion = rng.integers(2, size=200), rng.integers(2, size=200)
    found = mean_difference([pair("s", 0, list(plain), list(motion))])
    assert found.error_of_runs is None
    error = stats.sem(motion - plain)
    assert found.error_of_videos == pytest.approx(error)
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, (motion - plain).mean(), error))


@pytest.mark.parametrize(("splits", "seeds"), [(1, 3), (3, 3), (2, 5)])
def test_interval_has_the_nominal_coverage(splits: int, seeds: int) -> None:
    rng = np.random.default_rng(splits)
    covered = 0
    for _ in range(300):
        pairs = []
        for column in range(splits):
            # All seeds of a split share the effect of its parts on the gain; with a single split it is fixed.
            ease, gain = rng.random(40), 0.2 + (rng.normal(0, 0.15) if splits > 1 else 0)
            for seed in range(seeds):
                luck = rng.normal(0, 0.05, 2)
                plain, motion = (rng.random(40) < ease * 0.4 + 0.1 + shift for shift in (luck[0], gain + luck[1]))
                pairs.append(pair(f"s{column}", seed, list(plain), list(motion)))
        found = mean_difference(pairs)
        covered += found.low <= 0.2 <= found.high
    assert covered >= 0.94 * 300


def test_seeds_of_one_split_are_not_independent() -> None:
    # Splits differ widely and seeds agree: more seeds give no information about other splits.
    def found(seeds: int) -> Difference:
        return mean_difference(
            [pair(c, s, [0] * 50, [gain] * 50) for c, gain in (("a", 1), ("b", 0), ("c", 1)) for s in range(seeds)]
        )

    low, _ = stats.t.interval(0.95, 2, loc=2 / 3, scale=stats.sem([1, 0, 1]))
    assert found(5).error_of_runs == found(1).error_of_runs == pytest.approx(stats.sem([1, 0, 1]))
    assert (found(5).pairs, found(5).splits) == (15, 3)
    assert found(5).low <= low
    with pytest.raises(ValueError, match="2 of a, 1 of b; need the same number"):
        mean_difference([pair(c, s, [0], [1]) for c, s in (("a", 0), ("a", 1), ("b", 0))])


def test_missing_pairs_are_rejected() -> None:
    with pytest.raises(ValueError, match="pairs: empty"):
        mean_difference([])
    with pytest.raises(ValueError, match="must be equal"):
        Pair(split_column="s", seed=0, videos=("a",), plain_N=np.ones(2, bool), changed_N=np.ones(1, bool))
