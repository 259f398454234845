"""Does motion prediction as an auxiliary loss help? The difference of top-1 over pairs of runs, and how sure it is.

Shape legend: N test videos of a pair.
"""

# ruff: noqa: N815 (carriers name the shapes of their arrays)

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
    """Two trainings of one seed and split, without and with motion prediction, tested on the same videos.

    Attributes:
        split_column, seed: what both share.
        videos: N ids.
        plain_N, motion_N: bool, whether each video was recognised, by either.
    """

    split_column: str
    seed: int
    videos: tuple[str, ...]
    plain_N: NDArray[np.bool_]
    motion_N: NDArray[np.bool_]

    def __post_init__(self) -> None:
        sizes = (len(self.videos), len(self.plain_N), len(self.motion_N))
        if not sizes[0] or len(set(sizes)) > 1:
            raise ValueError(f"videos, plain_N, motion_N: {sizes} values, need equally many, at least one")

    @property
    def difference_per_video(self) -> NDArray[np.float64]:
        """1 where only the run with motion is right, -1 where only the other one is."""
        return self.motion_N.astype(np.float64) - self.plain_N.astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean difference of top-1, with motion less without, as a share.

    Attributes:
        value: the mean over pairs.
        low, high: its 95 % interval.
        pairs: how many.
        splits: on how many splits.
        error_of_runs: standard error from split to split; from seed to seed of one split; None of a single pair.
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
    """The mean over pairs, and an interval that holds for other seeds, other splits and other test videos alike.

    The figure varies for two reasons, and their standard errors are added in squares:

    - runs: the pairs of one split share its training and test part, so that they are not independent. Of several
      splits the error is that of their means: the standard deviation of the splits' mean differences, divided by the
      root of the number of splits (a one-way random-effects analysis, seeds nested in splits). Of one split it is the
      same of its pairs: then it holds for other seeds, of this split;
    - videos: a test video counts once however many pairs tested it. Its contribution to the mean is the sum over its
      pairs of (difference / videos of the pair) / pairs; the error is that of a sum of V independent contributions,
      sqrt(V / (V - 1) * sum of squared deviations from their mean).

    Half the interval's width is this error times Student's t at 97.5 % for splits - 1 degrees of freedom, of one split
    for pairs - 1. A bootstrap over three runs would be far too narrow; this is rather too wide: different splits differ
    by their videos as well, so that part is counted twice, and few degrees of freedom are assumed for both. Of a single
    pair nothing is known of the runs; its interval covers the videos alone, by the normal distribution, and is too
    narrow.

    Args:
        pairs: at least one; equally many of each split.

    Raises:
        ValueError: there is none, or splits have unequally many.
    """
    if not pairs:
        raise ValueError("pairs: none, need at least one")
    count = len(pairs)
    by_split: dict[str, list[float]] = defaultdict(list)
    contributions: dict[str, float] = defaultdict(float)
    for pair in pairs:
        by_split[pair.split_column].append(float(pair.difference_per_video.mean()))
        for video, difference in zip(pair.videos, pair.difference_per_video, strict=True):
            contributions[video] += float(difference) / (len(pair.videos) * count)
    if len({len(differences) for differences in by_split.values()}) > 1:
        raise ValueError(
            f"pairs: {', '.join(f'{len(d)} of {name}' for name, d in by_split.items())}; need equally many"
        )
    videos = len(contributions)
    spread = np.array(list(contributions.values())).var() * videos
    error_of_videos = math.sqrt(spread * videos / (videos - 1)) if videos > 1 else math.inf
    own = [float(np.mean(split)) for split in by_split.values()]
    means = np.array(own if len(own) > 1 else next(iter(by_split.values())))
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
        pairs=count,
        splits=len(by_split),
        error_of_runs=error_of_runs,
        error_of_videos=error_of_videos,
    )
