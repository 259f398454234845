"""Effect of a change of supervised training: difference in top-1 accuracy over pairs of runs, with its interval.

Shape legend: N test videos of a pair.
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

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs with the same seed and split, without and with a change, tested on the same videos.

    Attributes:
        split_column, seed: shared by both runs.
        videos: N video ids.
        plain_N, changed_N: whether each video was classified correctly by the run without and with the change.
    """

    split_column: str
    seed: int
    videos: tuple[str, ...]
    plain_N: NDArray[np.bool_]
    changed_N: NDArray[np.bool_]

    def __post_init__(self) -> None:
        sizes = (len(self.videos), len(self.plain_N), len(self.changed_N))
        if not sizes[0] or len(set(sizes)) > 1:
            raise ValueError(f"videos, plain_N, changed_N: lengths {sizes}, must be equal and at least 1")

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
        error_of_videos: standard error from the choice of test videos.
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
    - Videos: a test video counts once, however many pairs tested it. Its contribution to the mean is the sum over its
      pairs of (difference / number of videos in the pair) / number of pairs. The standard error is that of a sum of V
      independent contributions, sqrt(V / (V - 1) * sum of squared deviations from their mean).

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
    contributions: dict[str, float] = defaultdict(float)
    for pair in pairs:
        by_split[pair.split_column].append(float(pair.difference_per_video.mean()))
        for video, difference in zip(pair.videos, pair.difference_per_video, strict=True):
            contributions[video] += float(difference) / (len(pair.videos) * len(pairs))
    if len({len(differences) for differences in by_split.values()}) > 1:
        counts = ", ".join(f"{len(differences)} of {name}" for name, differences in by_split.items())
        raise ValueError(f"pairs: {counts}; need the same number for each split")
    videos = len(contributions)
    spread = np.array(list(contributions.values())).var() * videos
    error_of_videos = math.sqrt(spread * videos / (videos - 1)) if videos > 1 else math.inf
    split_means = [float(np.mean(differences)) for differences in by_split.values()]
    means = np.array(split_means if len(split_means) > 1 else next(iter(by_split.values())))
    units = len(means)
    error_of_runs = float(means.std(ddof=1) / math.sqrt(units)) if units > 1 else None
    quantile = (1 + LEVEL) / 2
    factor = float(norm.ppf(quantile) if units == 1 else t.ppf(quantile, units - 1))
    half = factor * math.hypot(error_of_runs or 0.0, error_of_videos)
    value = float(means.mean())
    return Difference(
        value=value,
        low=max(value - half, -1.0),
        high=min(value + half, 1.0),
        pairs=len(pairs),
        splits=len(by_split),
        error_of_runs=error_of_runs,
        error_of_videos=error_of_videos,
    )
