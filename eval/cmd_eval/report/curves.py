"""Training curves: turn the lines of ``metrics.jsonl`` into coordinates of small line charts.

Long runs are thinned: each point is the mean over several steps, and a band shows their minimum and maximum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

WIDTH, HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 26
_MAX_POINTS = 120
_MINUS = "\N{MINUS SIGN}"
_MAX_DOTS = 12
_TICKS = 4

Metrics = Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart, in pixels of the chart.

    Attributes:
        name: name in the legend.
        points: points of the line, ``x,y x,y ...``.
        band: polygon from minimum to maximum in the same form; empty if every step has its own point.
        last: last value, formatted.
        dots: coordinates of the points if there are few; else empty.
        dashed: whether the line is a reference such as chance.
    """

    name: str
    points: str
    band: str
    last: str
    dots: Sequence[tuple[float, float]] = ()
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A small line chart.

    Attributes:
        title: heading.
        x_ticks, y_ticks: position in pixels and text of each tick.
        lines: the lines, in the order of the legend.
        steps_per_point: number of steps averaged in a point.
    """

    title: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[Line]
    steps_per_point: int
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    bottom: int = HEIGHT - _BOTTOM


@dataclass(frozen=True, kw_only=True)
class Series:
    """A metric by step, without the steps that lack it."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class _Thinned:
    steps: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def training_charts(metrics: Metrics) -> list[Chart]:
    """Return all charts for which the metrics have values, losses first.

    Args:
        metrics: lines of ``metrics.jsonl``, in order; each must have ``step``, all other keys are optional.
    """
    names = {name for line in metrics for name in line}
    losses = ["loss", *sorted(name for name in names if name.endswith("_loss"))]
    charts: list[Chart | None] = [loss_chart("Loss", [_series(metrics, name) for name in losses])]
    heads = sorted(name.removesuffix("_top1") for name in names if name.endswith("_top1"))
    charts += [_accuracy_chart(metrics, f"{head}_", f"{head.capitalize()} task, accuracy") for head in heads]
    charts.append(_accuracy_chart(metrics, "", "Accuracy on training batches"))
    retrieval = [_series(metrics, f"retrieval_r{k}", f"R@{k}") for k in (1, 5)]
    charts.append(_chart("Retrieval during training", retrieval, _percent, from_zero=True))
    for title, name, format_value in (
        ("Learning rate", "lr", format_number),
        ("Gradient norm", "grad_norm", format_number),
        ("Clips per second", "clips_per_second", format_number),
        ("Time spent waiting for data", "data_wait_share", _percent),
    ):
        charts.append(_chart(title, [_series(metrics, name, title.lower())], format_value, from_zero=True))
    for ending, title in (("alignment", "Alignment of queries and keys"), ("uniformity", "Uniformity of embeddings")):
        found = sorted(name for name in names if name.endswith(f"_{ending}"))
        charts.append(_chart(title, [_series(metrics, name) for name in found], format_number))
    return [chart for chart in charts if chart]


def _series(metrics: Metrics, key: str, name: str = "") -> Series:
    found = [(line["step"], line[key]) for line in metrics if _is_number(line.get(key))]
    display_name = name or key.replace("top1", "top-1").replace("top5", "top-5").replace("_", " ")
    return Series(name=display_name, steps=[step for step, _ in found], values=[value for _, value in found])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _accuracy_chart(metrics: Metrics, prefix: str, title: str) -> Chart | None:
    series = [_series(metrics, f"{prefix}top{k}", f"top-{k}") for k in (1, 5)]
    majority = replace(_series(metrics, f"{prefix}majority", "most frequent direction"), dashed=True)
    return accuracy_chart(title, [*series, majority], _series(metrics, f"{prefix}candidates"))


def accuracy_chart(title: str, series: Sequence[Series], candidates: Series) -> Chart | None:
    """Return a chart of accuracies with the chance level, from zero; None if there are no values.

    Args:
        title: heading.
        series: accuracies, as shares.
        candidates: number of candidates at each step; may be empty.
    """
    chance = [1 / max(count, 1) for count in candidates.values]
    reference = [Series(name="chance of top-1", steps=candidates.steps, values=chance, dashed=True)] if chance else []
    return _chart(title, [*series, *reference], _percent, from_zero=True)


def loss_chart(title: str, series: Sequence[Series]) -> Chart | None:
    """Return a chart of losses, with the axis limited to their range; None if there are no values."""
    return _chart(title, series, format_number)


def _chart(
    title: str, series: Sequence[Series], format_value: Callable[[float], str], from_zero: bool = False
) -> Chart | None:
    present = [one for one in series if one.values]
    if not present:
        return None
    last_step = max(one.steps[-1] for one in present)
    thinned = [_thin(one) for one in present]
    low = 0.0 if from_zero else min(min(t.low) for t in thinned)
    y_ticks = nice_ticks(low, max(max(t.high) for t in thinned))
    bottom, top = y_ticks[0], y_ticks[-1]

    def x_of(step: float) -> float:
        return _LEFT + step / last_step * (WIDTH - _LEFT - _RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - _BOTTOM - (value - bottom) / (top - bottom) * (HEIGHT - _TOP - _BOTTOM)

    lines = [
        _line(series, points, format_value(series.values[-1]), x_of, y_of)
        for series, points in zip(present, thinned, strict=True)
    ]
    x_ticks = [step for step in nice_ticks(0, last_step) if step <= last_step and step == int(step)]
    return Chart(
        title=title,
        x_ticks=[(x_of(step), f"{step:,.0f}") for step in x_ticks],
        y_ticks=[(y_of(value), format_value(value)) for value in y_ticks],
        lines=lines,
        steps_per_point=max(_bucket_size(len(one.values)) for one in present),
    )


def _line(
    series: Series, points: _Thinned, last: str, x_of: Callable[[float], float], y_of: Callable[[float], float]
) -> Line:
    def path(values: Sequence[float], backwards: bool = False) -> str:
        pairs = [f"{x_of(s):.1f},{y_of(v):.1f}" for s, v in zip(points.steps, values, strict=True)]
        return " ".join(reversed(pairs) if backwards else pairs)

    banded = _bucket_size(len(series.values)) > 1 and not series.dashed
    band = f"{path(points.high)} {path(points.low, backwards=True)}" if banded else ""
    few = len(points.steps) <= _MAX_DOTS and not series.dashed
    dots = [(round(x_of(s), 1), round(y_of(v), 1)) for s, v in zip(points.steps, points.mean, strict=True) if few]
    return Line(name=series.name, points=path(points.mean), band=band, last=last, dots=dots, dashed=series.dashed)


def _bucket_size(count: int) -> int:
    return -(-count // _MAX_POINTS)


def _thin(series: Series) -> _Thinned:
    """Reduce a series to the mean, minimum and maximum of at most about 120 groups of consecutive steps."""
    size = _bucket_size(len(series.values))
    starts = np.arange(0, len(series.values), size)
    values, steps = np.asarray(series.values, np.float64), np.asarray(series.steps, np.float64)
    counts = np.diff([*starts, len(values)])
    return _Thinned(
        steps=(np.add.reduceat(steps, starts) / counts).tolist(),
        mean=(np.add.reduceat(values, starts) / counts).tolist(),
        low=np.minimum.reduceat(values, starts).tolist(),
        high=np.maximum.reduceat(values, starts).tolist(),
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Return evenly spaced round numbers (1, 2 or 5 times a power of ten) that enclose ``low`` to ``high``."""
    if high <= low:
        # A constant: leave some room around it.
        low, high = (low - abs(low) / 2, low + abs(low) / 2) if low else (0.0, 1.0)
    rough = (high - low) / _TICKS
    magnitude = 10.0 ** math.floor(math.log10(rough))
    spacing = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / spacing + 1e-9), math.ceil(high / spacing - 1e-9)
    return [spacing * number for number in range(first, last + 1)]


def format_number(value: float) -> str:
    """Format a number with at most four digits and without unnecessary zeros."""
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e").replace("-", _MINUS)


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"
