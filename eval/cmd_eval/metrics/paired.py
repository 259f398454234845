"""Differences between runs that were tested on the same videos, with intervals over groups of videos and over seeds.

Shape legend: N test videos, R runs with different seeds, U units: groups of videos, or videos without a group.
"""

# ruff: noqa: N815 (field names carry the shapes of their arrays)

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from cmd_eval.metrics.intervals import LEVEL, Interval, equal_units_limits, unit_numbers

_NO_VARIANCE = 1e-20  # of differences that are equal up to rounding


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs with the same seed and split, without and with a change, tested on the same videos.

    Attributes:
        split_column, seed: shared by both runs.
        videos: N video ids.
        groups: N group names; videos with an empty name are independent.
        plain_N, changed_N: whether each video was classified correctly by the run without and with the change.
    """

    split_column: str
    seed: int
    videos: tuple[str, ...]
    groups: tuple[str, ...]
    plain_N: NDArray[np.bool_]
    changed_N: NDArray[np.bool_]

    def __post_init__(self) -> None:
        sizes = (len(self.videos), len(self.groups), len(self.plain_N), len(self.changed_N))
        if not sizes[0] or len(set(sizes)) > 1:
            raise ValueError(f"videos, groups, plain_N, changed_N: lengths {sizes}, must be equal and at least 1")

    @property
    def difference_per_video(self) -> NDArray[np.float64]:
        """1 where only the run with the change is right, -1 where only the other run is, else 0."""
        return self.changed_N.astype(np.float64) - self.plain_N.astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean difference in top-1 accuracy, with minus without the change, as a fraction.

    Attributes:
        value: mean over pairs.
        low, high: limits of the 95 % interval.
        pairs: number of pairs.
        splits: number of splits.
        error_of_runs: standard error between splits, or between seeds if there is one split; None for a single pair.
        error_of_videos: standard error from the choice of test videos, or of groups of them.
    """

    value: float
    low: float
    high: float
    pairs: int
    splits: int
    error_of_runs: float | None
    error_of_videos: float


def mean_difference(pairs: Sequence[Pair]) -> Difference:
    """Compute the mean difference with an interval that covers other seeds, other splits and other test videos.

    Two sources of variation are combined by adding the squares of their standard errors:

    - Runs: pairs of the same split share its training and test parts, so they are not independent. With several
      splits, the standard error is the standard deviation of the splits' mean differences divided by the square root
      of the number of splits (one-way random effects, seeds nested in splits). With one split, the same is computed
      over its pairs; the interval then covers other seeds of this split only.
    - Videos: a test video counts once, however many pairs tested it, and the videos of a group are not independent. The
      contribution of a unit (a group, or a video without a group) is the sum over its videos and their pairs of
      (difference - mean) / number of videos in the pair / number of pairs. The standard error is that of a sum of U
      independent contributions, sqrt(U / (U - 1) * sum of their squares).

    The half-width of the interval is this error times the 97.5 % quantile of Student's t with (splits - 1) degrees of
    freedom, or (pairs - 1) with one split. A bootstrap over three runs would be far too narrow. This interval is
    conservative: the variation between splits includes that of their videos, which is counted twice, and the small
    number of degrees of freedom applies to both sources. A single pair gives no information about the variation
    between runs; its interval covers the videos only, uses the normal distribution, and is too narrow.

    Args:
        pairs: at least one; the same number for each split.

    Raises:
        ValueError: there are no pairs, or the splits have different numbers of pairs.
    """
    if not pairs:
        raise ValueError("pairs: empty, need at least one")
    by_split: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        by_split[pair.split_column].append(float(pair.difference_per_video.mean()))
    value = float(np.mean([difference for differences in by_split.values() for difference in differences]))
    contributions: dict[tuple[str, str], float] = defaultdict(float)
    for pair in pairs:
        for video, group, difference in zip(pair.videos, pair.groups, pair.difference_per_video, strict=True):
            unit = ("group", group) if group else ("video", video)
            contributions[unit] += (float(difference) - value) / (len(pair.videos) * len(pairs))
    if len({len(differences) for differences in by_split.values()}) > 1:
        counts = ", ".join(f"{len(differences)} of {name}" for name, differences in by_split.items())
        raise ValueError(f"pairs: {counts}; need the same number for each split")
    error_of_videos = math.sqrt(_variance_of_sum(np.array(list(contributions.values()))))
    split_means = [float(np.mean(differences)) for differences in by_split.values()]
    means = np.array(split_means if len(split_means) > 1 else next(iter(by_split.values())))
    units = len(means)
    error_of_runs = float(means.std(ddof=1) / math.sqrt(units)) if units > 1 else None
    quantile = (1 + LEVEL) / 2
    factor = float(norm.ppf(quantile) if units == 1 else t.ppf(quantile, units - 1))
    half = factor * math.hypot(error_of_runs or 0.0, error_of_videos)
    return Difference(
        value=value,
        low=max(value - half, -1.0),
        high=min(value + half, 1.0),
        pairs=len(pairs),
        splits=len(by_split),
        error_of_runs=error_of_runs,
        error_of_videos=error_of_videos,
    )


def _variance_of_sum(contribution_U: NDArray[np.float64]) -> float:
    """Return the variance of a sum of independent contributions with mean 0; infinite for a single one."""
    units = len(contribution_U)
    return float((contribution_U**2).sum() * units / (units - 1)) if units > 1 else math.inf


def runs_difference(
    first_RN: NDArray[np.float64], second_RN: NDArray[np.float64], groups: Sequence[str] | None = None
) -> Interval:
    """Compute the mean difference between two methods on the same videos, with a 95 % interval over groups and seeds.

    A method may have several runs, which differ in the seed. The interval adds up to three independent variances:

    - Videos: that of the mean over videos of the difference in hit rate (over runs), with whole groups as units, as in
      ``mean_difference``; U - 1 degrees of freedom.
    - Runs of each method, if there are several: the variance of their means over videos, divided by their number;
      R - 1 degrees of freedom. Without several runs, the interval does not cover other seeds of this method.

    The half-width is the square root of their sum times the 97.5 % quantile of Student's t, with degrees of freedom by
    Welch and Satterthwaite. It is slightly conservative, since chance within a run contributes to both.

    If all units have the same mean difference, other units may still differ: the interval then contains at least the
    limits of ``cmd_eval.metrics.intervals.equal_units_limits``. With a single group, it is from -1 to 1.

    Args:
        first_RN, second_RN: one row per run and one value per video, for example 1 for a hit; the numbers of runs may
            differ.
        groups: group of each video; videos with an empty name are independent.

    Raises:
        ValueError: there are no runs or videos, or the videos differ in number.
    """
    sides = [np.atleast_2d(np.asarray(side, dtype=np.float64)) for side in (first_RN, second_RN)]
    videos = sides[0].shape[1]
    if not sides[0].size or not sides[1].size or sides[1].shape[1] != videos:
        raise ValueError(f"second_RN: shape {sides[1].shape}, but first_RN has {sides[0].shape}")
    unit_N, unit = unit_numbers(groups, videos)
    units = int(unit_N.max()) + 1
    difference_N = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    value = float(difference_N.mean())
    parts = [(_variance_of_sum(np.bincount(unit_N, difference_N - value) / videos), units - 1)]
    parts += [(float(side.mean(axis=1).var(ddof=1)) / len(side), len(side) - 1) for side in sides if len(side) > 1]
    variance = sum(part for part, _ in parts)
    if not 0 < variance < math.inf:  # all units differ alike, or there is a single group
        half = 0.0 if variance == 0 else 2.0
    else:
        freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
        half = float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    low, high = max(value - half, -1.0), min(value + half, 1.0)
    if parts[0][0] < _NO_VARIANCE:
        limits = equal_units_limits(value, units, (-1.0, 1.0))
        low, high = min(low, limits[0]), max(high, limits[1])
    return Interval(value=value, low=low, high=high, unit=unit, units=units)
