"""Interval of the difference between paired runs, compared with scipy and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cmd_eval.metrics.paired import Difference, Pair, mean_difference, runs_difference


def pair(column: str, seed: int, plain: list[int], motion: list[int], groups: list[str] | None = None) -> Pair:
    videos = tuple(f"{column}-{n}" for n in range(len(plain)))
    return Pair(
        split_column=column,
        seed=seed,
        videos=videos,
        groups=tuple(groups or [""] * len(plain)),
        plain_N=np.array(plain, bool),
        changed_N=np.array(motion, bool),
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
        Pair(
            split_column="s", seed=0, videos=("a",), groups=("",), plain_N=np.ones(2, bool), changed_N=np.ones(1, bool)
        )


def test_videos_of_a_group_are_one_unit() -> None:
    # Each group has the same difference in all its videos: as many observations as groups.
    groups = [name for name in "abcde" for _ in range(4)]
    motion = [int(name in "ab") for name in groups]
    found = mean_difference([pair("s", 0, [0] * 20, motion, groups)])
    assert found.error_of_videos == pytest.approx(stats.sem([1, 1, 0, 0, 0]))
    alone = mean_difference([pair("s", 0, [0] * 20, motion)])
    assert alone.error_of_videos == pytest.approx(stats.sem(motion))
    assert mean_difference([pair("s", 0, [0, 0], [0, 1])]).error_of_videos == pytest.approx(stats.sem([0, 1]))


def test_difference_of_single_runs_is_that_of_a_t_test_over_groups() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random((2, 30)) < 0.5
    found = runs_difference(first, second)
    low, high = stats.ttest_rel(first.astype(float), second.astype(float)).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert (found.unit, found.units) == ("videos", 30)
    # Copies of every video within its group add nothing.
    copied = runs_difference(first.repeat(3), second.repeat(3), [str(n // 3) for n in range(90)])
    assert (copied.low, copied.high) == pytest.approx((low, high))
    assert (copied.unit, copied.units) == ("groups", 30)


def test_difference_of_runs_without_variation_between_videos_is_welchs_t_test() -> None:
    # Each run hits all videos by the same amount, so that only the runs vary.
    first, second = np.array([0.5, 0.7, 0.6]), np.array([0.2, 0.3])
    found = runs_difference(first[:, None].repeat(40, 1), second[:, None].repeat(40, 1))
    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_equal_predictions_are_not_a_certain_difference_of_zero() -> None:
    hits = np.arange(20) % 2
    found = runs_difference(hits, hits, [""] * 20)
    assert found.value == 0
    assert -found.low == found.high == pytest.approx(stats.binomtest(0, 20).proportion_ci(method="wilson").high)
    many = runs_difference(hits.repeat(50), hits.repeat(50))
    assert many.high == pytest.approx(stats.binomtest(0, 1000).proportion_ci(method="wilson").high)
    assert runs_difference(hits, hits, ["one"] * 20).high > 0.7, "a single group says little"
    assert runs_difference(hits, 1 - hits, ["one"] * 20).high == 1
    with pytest.raises(ValueError, match="second_RN: shape"):
        runs_difference(np.ones(3), np.ones(4))


@pytest.mark.parametrize(("runs", "groups"), [((1, 1), 30), ((3, 3), 30), ((3, 1), 60)])
def test_difference_covers_other_groups_and_seeds(runs: tuple[int, int], groups: int) -> None:
    """Videos of a group share their difficulty for both methods and the advantage of the first; seeds shift all videos.

    The method with a single run has no variation between seeds, like hand-crafted features.
    """
    rng, covered, trials = np.random.default_rng(7), 0, 600
    names = [str(n // 5) for n in range(groups * 5)]
    for _ in range(trials):
        ease = rng.uniform(0.25, 0.55, groups).repeat(5)
        gain = rng.normal(0.15, 0.1, groups).repeat(5)
        sides = []
        for count, extra in zip(runs, (gain, 0), strict=True):
            luck = rng.normal(0, 0.04, (count, 1)) if count > 1 else np.zeros((1, 1))
            sides.append(rng.random((count, len(names))) < ease + extra + luck)
        found = runs_difference(*sides, names)
        covered += found.low <= 0.15 <= found.high
    assert 0.93 <= covered / trials <= 0.985
