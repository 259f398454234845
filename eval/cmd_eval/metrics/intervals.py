"""Confidence intervals of means over test videos, of which several may share a scene, a source film or a person.

Videos of one group resemble each other, so that one of them says much about the others. Where there are groups, whole
groups are resampled; intervals from single videos would be far too narrow (tests/unit/cmd_eval/metrics).

Shape legend: N items (test videos).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 2000
LEVEL = 0.95
_VALUES_PER_BATCH = 2**22
_EQUAL = 1e-12


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its confidence interval.

    Attributes:
        value: the figure.
        low, high: limits of the interval.
        unit: what is taken as independent: ``videos`` or ``groups``.
        units: their number.
    """

    value: float
    low: float
    high: float
    unit: str = "videos"
    units: int | None = None

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"low: {self.low} is above high = {self.high}")

    def as_json(self) -> dict[str, Any]:
        """Return all attributes."""
        return asdict(self)


def mean_interval(
    value_per_item_N: NDArray[np.float64],
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Compute a mean over items with its confidence interval.

    If items share groups, the interval is a percentile bootstrap over groups. Otherwise it is Wilson's interval for
    proportions (values of 0 and 1), and a percentile bootstrap over items for other values. If all groups (or items)
    have the same mean, resampling would give an interval of zero width: see ``equal_units_limits``. A single group has
    the interval from 0 to 1: nothing is known about other groups.

    The interval covers the choice of the test videos only, not other training runs or other galleries.

    Args:
        value_per_item_N: one value per item, usually between 0 and 1, for example 1 for a hit and 0 for a miss.
        groups: group of each item; items with an empty name are groups of their own. None if there are no groups.
        seed: random seed of the bootstrap.
        resamples: number of bootstrap samples.
        level: confidence level.

    Raises:
        ValueError: there are no items, or an argument is out of range.
    """
    value_N = np.asarray(value_per_item_N, dtype=np.float64)
    _check_arguments(value_N, groups, resamples, level)
    units, unit = _count_units(value_N, groups)
    if unit == "videos" and np.isin(value_N, (0, 1)).all():
        mean = float(value_N.mean())
        low, high = _wilson(round(mean * units), units, level)
        return Interval(value=mean, low=min(low, mean), high=max(high, mean), unit=unit, units=units)
    return _bootstrap(value_N, groups, (0.0, 1.0), seed, resamples, level)


def _check_arguments(value_N: NDArray[np.float64], groups: Sequence[str] | None, resamples: int, level: float) -> None:
    if value_N.ndim != 1 or not len(value_N):
        raise ValueError(f"value_per_item_N: shape {value_N.shape}, expected one value for each of at least one item")
    if groups is not None and len(groups) != len(value_N):
        raise ValueError(f"groups: {len(groups)}, but there are {len(value_N)} items")
    if resamples < 1:
        raise ValueError(f"resamples: {resamples} is not at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is not between 0 and 1")


def _wilson(hits: int, units: int, level: float) -> tuple[float, float]:
    found = stats.binomtest(hits, units).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def equal_units_limits(
    mean: float, units: int, bounds: tuple[float, float], level: float = LEVEL
) -> tuple[float, float]:
    """Return the limits of a mean that is the same in all units, for which resampling gives no interval.

    Wilson's interval for none of ``units`` gives the largest share of units that may have other values. If these are
    the lowest or the highest of ``bounds``, the mean moves to the limits.
    """
    share = _wilson(0, units, level)[1]
    return mean - share * max(mean - bounds[0], 0.0), mean + share * max(bounds[1] - mean, 0.0)


def _bootstrap(
    value_N: NDArray[np.float64],
    groups: Sequence[str] | None,
    bounds: tuple[float, float],
    seed: int,
    resamples: int,
    level: float,
) -> Interval:
    """Return the mean with its percentile bootstrap over groups, or over items without groups.

    A single unit says nothing about others: its interval is ``bounds``, the range of possible values.
    """
    sum_U, count_U = _units(value_N, groups)
    units, unit = _count_units(value_N, groups)
    mean = float(value_N.mean())
    if units == 1:
        return Interval(value=mean, low=min(bounds[0], mean), high=max(bounds[1], mean), unit=unit, units=units)
    if np.allclose(sum_U / count_U, mean, rtol=0, atol=_EQUAL):
        low, high = equal_units_limits(mean, units, bounds, level)
        return Interval(value=mean, low=low, high=high, unit=unit, units=units)
    found = stats.bootstrap(
        (sum_U, count_U),
        _ratio,
        paired=True,
        n_resamples=resamples,
        batch=max(1, _VALUES_PER_BATCH // units),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(
        value=mean, low=min(float(found.low), mean), high=max(float(found.high), mean), unit=unit, units=units
    )


def _count_units(value_N: NDArray[np.float64], groups: Sequence[str] | None) -> tuple[int, str]:
    """Return the number of independent units, and what they are."""
    unit_N, unit = unit_numbers(groups, len(value_N))
    return int(unit_N.max()) + 1, unit


def _units(
    value_N: NDArray[np.float64], groups: Sequence[str] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum of the values and the number of items of each independent unit."""
    unit_N, _ = unit_numbers(groups, len(value_N))
    return np.bincount(unit_N, value_N).astype(np.float64), np.bincount(unit_N).astype(np.float64)


def unit_numbers(groups: Sequence[str] | None, items: int) -> tuple[NDArray[np.int64], str]:
    """Return the number of each item's independent unit, and what these are: ``groups`` or ``videos``.

    Args:
        groups: group of each item; items with an empty name are groups of their own. None if there are no groups.
        items: number of items.
    """
    # A name that cannot be a group's keeps items without group apart.
    names = [group or ("", number) for number, group in enumerate(groups or [""] * items)]
    number_of = {name: number for number, name in enumerate(dict.fromkeys(names))}
    unit_N = np.array([number_of[name] for name in names], np.int64)
    return unit_N, "groups" if len(number_of) < items else "videos"


def _ratio(sum_U: NDArray[np.float64], count_U: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(sum_U.sum(axis) / count_U.sum(axis))


def paired_interval(
    a_N: NDArray[np.float64],
    b_N: NDArray[np.float64],
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> Interval:
    """Compute the mean of ``a - b`` over paired items with its bootstrap interval over groups or items.

    If the mean difference is the same in all units, resampling would give an interval of zero width. It is then that of
    ``equal_units_limits``; without any difference, it is symmetric.

    Args:
        a_N, b_N: one value per item, usually between 0 and 1, for example 1 for a hit; both at the same index belong to
            the same item.
        groups, seed: see ``mean_interval``.

    Raises:
        ValueError: the numbers of items differ, or there are no items.
    """
    a, b = np.asarray(a_N, dtype=np.float64), np.asarray(b_N, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"b_N: shape {b.shape}, but a_N has {a.shape}; pairs need one value on each side")
    _check_arguments(a, groups, RESAMPLES, LEVEL)
    return _bootstrap(a - b, groups, (-1.0, 1.0), seed, RESAMPLES, LEVEL)
