"""A map of the embeddings: 2-d coordinates of videos, and marks that tell classes apart by shape and colour.

Shape legend: N videos, F features.
"""

# ruff: noqa: N815 (carriers name the shapes of their arrays)

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 560, 440
_MARGIN = 12
MOST_CLASSES = 12
MOST_VIDEOS = 2000
_FEWEST_FOR_TSNE = 20
_COLORS = 6
OTHER = "other"

# Paths around the origin, about 10 pixels across; none is another one turned by a little.
SHAPES = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z",  # disc
    "M-4 -4h8v8h-8Z",  # square
    "M0 -5.2L5 3.8H-5Z",  # triangle
    "M0 -5.6L4.6 0L0 5.6L-4.6 0Z",  # diamond
    "M-1.6 -5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4Z",  # plus
    "M0 5.2L5 -3.8H-5Z",  # triangle on its tip
)
OTHER_SHAPE = "M-2.5 0a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0 -5 0Z"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """How a class is drawn: ``color`` is a number of the page's palette, ``shape`` a path."""

    name: str
    count: int
    color: int
    shape: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """A video of the map, in the map's pixels; ``title`` names it."""

    x: float
    y: float
    mark: Mark
    title: str


@dataclass(frozen=True, kw_only=True)
class EmbeddingMap:
    """A map coloured by one kind of name.

    Attributes:
        kind: ``label`` or ``group``.
        marks: the legend, most frequent first, ``other`` last.
        points: the videos.
    """

    kind: str
    marks: Sequence[Mark]
    points: Sequence[Point]
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Coordinates of videos and how they came about.

    Attributes:
        xy_N2: coordinates, (N, 2).
        rows: which rows of the features they belong to.
        method: in words.
    """

    xy_N2: NDArray[np.float64]
    rows: NDArray[np.int64]
    method: str


def project(feature_NF: NDArray[np.floating[Any]]) -> Projection:
    """Places videos on a plane by cosine similarity: t-SNE, or PCA for fewer than 20; the same for the same features.

    Of more than 2,000 videos, 2,000 drawn with seed 0 are placed.

    Args:
        feature_NF: (N, F).

    Raises:
        ValueError: there are fewer than 3 videos.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = len(feature_NF)
    if count < 3:
        raise ValueError(f"feature_NF: {count} videos, a map needs at least 3")
    rows = np.arange(count)
    if count > MOST_VIDEOS:
        rows = np.sort(np.random.default_rng(0).choice(count, MOST_VIDEOS, replace=False))
    # The rows first: the table may be a map of a large file.
    chosen = np.asarray(feature_NF[rows], np.float64)
    # With unit vectors, distances order as cosine similarities do, by which retrieval compares.
    unit = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)
    if len(rows) < _FEWEST_FOR_TSNE:
        xy = PCA(n_components=2, svd_solver="full").fit_transform(unit)
        return Projection(xy_N2=xy, rows=rows, method="principal components (PCA)")
    perplexity = min(30.0, (len(rows) - 1) / 3)
    short = PCA(n_components=min(50, *unit.shape), svd_solver="full").fit_transform(unit)
    xy = TSNE(perplexity=perplexity, init="pca", random_state=0, n_jobs=1).fit_transform(short)
    return Projection(xy_N2=np.asarray(xy, np.float64), rows=rows, method=f"t-SNE (perplexity {perplexity:g}, seed 0)")


def choose_marks(names: Sequence[str]) -> dict[str, Mark]:
    """A mark for each name: the 12 most frequent have their own, the rest share one; no name is ``other`` too.

    Args:
        names: of the videos; the empty name means that it is not known.
    """
    counts = Counter(name for name in names if name)
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    marks = {
        name: Mark(
            name=name,
            count=counts[name],
            color=number % _COLORS,
            # Shifted with each round of colours, so that no pair comes twice.
            shape=SHAPES[(number + number // _COLORS) % len(SHAPES)],
        )
        for number, name in enumerate(ordered[:MOST_CLASSES])
    }
    rest = [name for name in names if name not in marks]
    other = Mark(name=OTHER, count=len(rest), color=_COLORS, shape=OTHER_SHAPE)
    return marks | dict.fromkeys(rest, other)


def draw_map(projection: Projection, kind: str, names: Sequence[str], titles: Sequence[str]) -> EmbeddingMap:
    """A map of a projection, marked by label or by group.

    Args:
        projection: of the videos.
        kind: ``label`` or ``group``.
        names: the labels or groups of all N videos.
        titles: what identifies each of them.
    """
    shown = [names[row] for row in projection.rows]
    marks = choose_marks(shown)
    low, high = projection.xy_N2.min(axis=0), projection.xy_N2.max(axis=0)
    room = np.array([WIDTH, HEIGHT]) - 2 * _MARGIN
    # One scale for both axes: a map must not stretch.
    scale = float((room / np.maximum(high - low, 1e-9)).min())
    xy = (projection.xy_N2 - (low + high) / 2) * scale + np.array([WIDTH, HEIGHT]) / 2
    points = [
        Point(x=round(float(x), 1), y=round(float(y), 1), mark=marks[name], title=titles[row])
        for (x, y), name, row in zip(xy, shown, projection.rows, strict=True)
    ]
    # What has no mark of its own lies below what has.
    points.sort(key=lambda point: point.mark.name != OTHER)
    legend = sorted({mark.name: mark for mark in marks.values()}.values(), key=lambda m: (m.name == OTHER, -m.count))
    return EmbeddingMap(kind=kind, marks=legend, points=points)
