"""Bootstrap confidence intervals of means over test videos.

Shape legend: N items (test videos).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 2000
LEVEL = 0.95
_VALUES_PER_BATCH = 2**22


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its confidence interval.

    Attributes:
        value: the figure.
        low, high: limits of the interval.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"low: {self.low} is above high = {self.high}")

    def as_json(self) -> dict[str, float]:
        """Return ``value``, ``low`` and ``high``."""
        return {"value": self.value, "low": self.low, "high": self.high}


def bootstrap_interval(
    value_per_item_N: NDArray[np.float64], *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Compute a mean over items with its percentile bootstrap interval.

    The interval covers the choice of the test videos only, not other training runs or other galleries. If all values
    are equal, its width is zero.

    Args:
        value_per_item_N: one value per item, for example 1 for a hit and 0 for a miss.
        seed: random seed of the bootstrap.
        resamples: number of bootstrap samples.
        level: confidence level.

    Raises:
        ValueError: there are no items, or an argument is out of range.
    """
    value_N = np.asarray(value_per_item_N, dtype=np.float64)
    if value_N.ndim != 1 or not len(value_N):
        raise ValueError(f"value_per_item_N: shape {value_N.shape}, expected one value for each of at least one item")
    if resamples < 1:
        raise ValueError(f"resamples: {resamples} is not at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is not between 0 and 1")
    mean = float(value_N.mean())
    if len(value_N) == 1:  # scipy needs two observations
        return Interval(value=mean, low=mean, high=mean)
    found = stats.bootstrap(
        (value_N,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _VALUES_PER_BATCH // len(value_N)),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value=mean, low=float(found.low), high=float(found.high))


def paired_bootstrap(
    a_N: NDArray[np.float64],
    b_N: NDArray[np.float64],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Compute the mean of ``a - b`` over paired items with its bootstrap interval.

    Args:
        a_N, b_N: one value per item, for example 1 for a hit; both at the same index belong to the same item.
        seed, resamples, level: see ``bootstrap_interval``.

    Raises:
        ValueError: the numbers of items differ, or there are no items.
    """
    a, b = np.asarray(a_N, dtype=np.float64), np.asarray(b_N, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"b_N: shape {b.shape}, but a_N has {a.shape}; pairs need one value on each side")
    return bootstrap_interval(a - b, seed=seed, resamples=resamples, level=level)
