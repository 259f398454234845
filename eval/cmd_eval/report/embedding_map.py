"""Embedding maps of the report: videos on a plane, with classes distinguished by shape and color.

Shape legend: N videos, F features.
"""

# ruff: noqa: N815 (field names carry the shapes of their arrays)

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmd_eval.features.store import Features, read_features
from cmd_eval.report.tables import features_name

WIDTH, HEIGHT = 560, 440
_MARGIN = 12
MAX_CLASSES = 12
MAX_VIDEOS = 2000
_MIN_VIDEOS_FOR_TSNE = 20
_COLORS = 6
OTHER = "other"
EMBEDDINGS_PATTERN = "embeddings-*.h5"
_NAME_PX = 15.0  # height of a name, with some room
_LETTER_PX = 7.5  # width of a letter, generously
_MAX_NAME = 24
_READING_HELP = (
    "Neighbors on the map are mostly neighbors in feature space; cluster sizes and distances between clusters mean "
    "little. Each name is at the median of its points; hover over a point to see which video it is."
)

# SVG paths around the origin, about 10 pixels across; no shape is a slightly rotated version of another.
SHAPES = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z",  # disc
    "M-4 -4h8v8h-8Z",  # square
    "M0 -5.2L5 3.8H-5Z",  # triangle
    "M0 -5.6L4.6 0L0 5.6L-4.6 0Z",  # diamond
    "M-1.6 -5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4Z",  # plus
    "M0 5.2L5 -3.8H-5Z",  # triangle, pointing down
)
OTHER_SHAPE = "M-2.5 0a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0 -5 0Z"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Appearance of a class: ``color`` is an index into the palette of the page, ``shape`` an SVG path."""

    name: str
    count: int
    color: int
    shape: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """A video on the map, in pixels of the map; ``title`` identifies it."""

    x: float
    y: float
    mark: Mark
    title: str


@dataclass(frozen=True, kw_only=True)
class MapName:
    """Name of a class on the map: center of its base line, in pixels of the map."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, kw_only=True)
class EmbeddingMap:
    """A map colored by label or by group.

    Attributes:
        target: ``label`` or ``group``.
        marks: the legend, most frequent first, ``other`` last.
        points: the videos.
        names: names of the classes with a mark of their own.
    """

    target: str
    marks: Sequence[Mark]
    points: Sequence[Point]
    names: Sequence[MapName]
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Coordinates of videos on a plane.

    Attributes:
        xy_N2: coordinates, (N, 2).
        rows: the rows of the features that they belong to.
        method: name and parameters of the projection.
    """

    xy_N2: NDArray[np.float64]
    rows: NDArray[np.int64]
    method: str


def project(feature_NF: NDArray[np.floating[Any]]) -> Projection:
    """Project features onto a plane by cosine similarity, deterministically: t-SNE, or PCA for fewer than 20 videos.

    Of more than 2,000 videos, a random sample of 2,000 (seed 0) is projected.

    Args:
        feature_NF: (N, F).

    Raises:
        ValueError: there are fewer than 3 videos.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = len(feature_NF)
    if count < 3:
        raise ValueError(f"feature_NF: {count} videos; an embedding map needs at least 3")
    rows = np.arange(count)
    if count > MAX_VIDEOS:
        rows = np.sort(np.random.default_rng(0).choice(count, MAX_VIDEOS, replace=False))
    # Select rows first: the features may be memory-mapped from a large file.
    chosen = np.asarray(feature_NF[rows], np.float64)
    # Distances between unit vectors rank like the cosine similarities that retrieval uses.
    unit = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)
    if len(rows) < _MIN_VIDEOS_FOR_TSNE:
        xy = PCA(n_components=2, svd_solver="full").fit_transform(unit)
        return Projection(xy_N2=xy, rows=rows, method="principal components (PCA)")
    perplexity = min(30.0, (len(rows) - 1) / 3)
    short = PCA(n_components=min(50, *unit.shape), svd_solver="full").fit_transform(unit)
    xy = TSNE(perplexity=perplexity, init="pca", random_state=0, n_jobs=1).fit_transform(short)
    return Projection(xy_N2=np.asarray(xy, np.float64), rows=rows, method=f"t-SNE (perplexity {perplexity:g}, seed 0)")


def choose_marks(names: Sequence[str]) -> dict[str, Mark]:
    """Choose a mark for each name: the 12 most frequent have their own, all others share one.

    Args:
        names: name of each video; empty if unknown, which counts as ``other``.
    """
    counts = Counter(name for name in names if name)
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    marks = {
        name: Mark(
            name=name,
            count=counts[name],
            color=number % _COLORS,
            # Shifted with each round of colors, so that no combination repeats.
            shape=SHAPES[(number + number // _COLORS) % len(SHAPES)],
        )
        for number, name in enumerate(ordered[:MAX_CLASSES])
    }
    rest = [name for name in names if name not in marks]
    other = Mark(name=OTHER, count=len(rest), color=_COLORS, shape=OTHER_SHAPE)
    return marks | dict.fromkeys(rest, other)


def draw_map(projection: Projection, target: str, names: Sequence[str], titles: Sequence[str]) -> EmbeddingMap:
    """Draw a map with a mark for each label or group.

    Args:
        projection: coordinates of the videos.
        target: ``label`` or ``group``.
        names: labels or groups of all N videos.
        titles: text that identifies each of them.
    """
    shown = [names[row] for row in projection.rows]
    marks = choose_marks(shown)
    low, high = projection.xy_N2.min(axis=0), projection.xy_N2.max(axis=0)
    room = np.array([WIDTH, HEIGHT]) - 2 * _MARGIN
    # One scale for both axes: distances must not be distorted.
    scale = float((room / np.maximum(high - low, 1e-9)).min())
    xy = (projection.xy_N2 - (low + high) / 2) * scale + np.array([WIDTH, HEIGHT]) / 2
    points = [
        Point(x=round(float(x), 1), y=round(float(y), 1), mark=marks[name], title=titles[row])
        for (x, y), name, row in zip(xy, shown, projection.rows, strict=True)
    ]
    # Points without a mark of their own are drawn first, below the others.
    points.sort(key=lambda point: point.mark.name != OTHER)
    legend = sorted({mark.name: mark for mark in marks.values()}.values(), key=lambda m: (m.name == OTHER, -m.count))
    return EmbeddingMap(target=target, marks=legend, points=points, names=place_names(points))


def place_names(points: Sequence[Point]) -> list[MapName]:
    """Place the name of each class at the median of its points, moved up or down where it would cover another one."""
    by_mark: dict[str, list[Point]] = {}
    for point in points:
        if point.mark.name != OTHER:
            by_mark.setdefault(point.mark.name, []).append(point)
    medians = {name: np.median([(point.x, point.y) for point in own], axis=0).tolist() for name, own in by_mark.items()}
    placed: list[MapName] = []
    boxes: list[tuple[float, float, float]] = []  # left, right and base line
    for name, (x, y) in sorted(medians.items(), key=lambda item: item[1][1]):
        text = name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
        width = _LETTER_PX * len(text)
        left = min(max(x - width / 2, 0), WIDTH - width)
        free = [
            base
            for shift in range(len(medians) + 1)
            for base in (y + shift * _NAME_PX, y - shift * _NAME_PX)
            if _NAME_PX <= base <= HEIGHT - _NAME_PX / 2
            and all(abs(base - b) >= _NAME_PX or left + width <= a or left >= c for a, c, b in boxes)
        ]
        base = free[0] if free else y
        boxes.append((left, left + width, base))
        placed.append(MapName(x=round(left + width / 2, 1), y=round(base, 1), text=text))
    return placed


@dataclass(frozen=True, kw_only=True)
class MappedFeatures:
    """The maps of one features file and their caption."""

    caption: str
    maps: Sequence[EmbeddingMap]


def read_maps(folder: Path) -> tuple[list[MappedFeatures], list[str]]:
    """Draw maps by label and by group for every features file in a folder, trained networks first.

    Returns:
        The maps, and a line for each file that cannot be drawn.
    """
    maps, problems = [], []
    # The name of untrained features contains this word after the hash and the version.
    paths = sorted(folder.glob(EMBEDDINGS_PATTERN), key=lambda path: ("-untrained" in path.stem, path.name))
    for path in paths:
        try:
            maps.append(map_features(read_features(path)))
        except (ValueError, OSError) as error:
            problems.append(f"embedding map: {error}")
    return maps, problems


def map_features(features: Features) -> MappedFeatures:
    """Draw maps of features by label and by group; a target that no video has is left out.

    Raises:
        ValueError: there are fewer than 3 videos.
    """
    videos = features.videos
    projection = project(features.table_VF)
    # An id alone may not say what the video shows.
    titles = [" · ".join(filter(None, names)) for names in zip(videos.ids, videos.labels, videos.groups, strict=True)]
    targets = [("label", videos.labels), ("group", videos.groups)]
    maps = [draw_map(projection, target, names, titles) for target, names in targets if any(names)]
    shown, total = len(projection.rows), len(videos.ids)
    count = f"{shown:,} videos" if shown == total else f"random sample of {shown:,} of {total:,} videos"
    name = features_name(vars(features.provenance))
    return MappedFeatures(
        caption=f"{name[0].upper()}{name[1:]}: {count}, {projection.method}. {_READING_HELP}",
        maps=maps or [draw_map(projection, "label", videos.labels, titles)],
    )
