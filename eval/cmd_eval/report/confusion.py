"""Confusion matrices of the report: a table of counts, or a picture if there are many classes.

Shape legend: K classes; rows are true classes, columns predicted ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmd_eval.report.pictures import Picture, png_picture
from cmd_eval.report.tables import Record, Table, text_cells

MAX_CLASSES_IN_TABLE = 24
_MAX_PAIRS = 10
_INK = (0, 92, 158)  # visible on white and on black; the alpha channel is the share


@dataclass(frozen=True, kw_only=True)
class ConfusionCell:
    """A count and its share (0 to 1) of the row."""

    count: int
    share: float


@dataclass(frozen=True, kw_only=True)
class ConfusionView:
    """A confusion matrix to show.

    Attributes:
        title: heading.
        first: whether it is of the first split and therefore expanded.
        classes: names of rows and columns.
        rows: cells of the table; empty if there are too many classes.
        picture: picture of the matrix if there are too many classes for a table.
        confused: the most frequent confusions; None if there are none.
    """

    title: str
    first: bool
    classes: Sequence[str]
    rows: Sequence[Sequence[ConfusionCell]]
    picture: Picture | None
    confused: Table | None


def view_confusion(title: str, split: Record, *, first: bool = True) -> ConfusionView:
    """Prepare the confusion matrix of a split.

    Args:
        title: heading.
        split: split of a result, with ``classes`` (K names) and ``confusion`` (K rows of K counts).
        first: whether it is the first split.

    Raises:
        ValueError: the matrix does not have K x K counts.
    """
    classes = [str(name) for name in split["classes"]]
    counts_KK = np.asarray(split["confusion"], np.int64)
    if counts_KK.shape != (len(classes), len(classes)):
        raise ValueError(f"confusion: {counts_KK.shape} counts for {len(classes)} classes")
    share_KK = row_shares(counts_KK)
    small = len(classes) <= MAX_CLASSES_IN_TABLE
    rows = [
        [ConfusionCell(count=int(count), share=float(share)) for count, share in zip(*row, strict=True)]
        for row in zip(counts_KK, share_KK, strict=True)
    ]
    return ConfusionView(
        title=title,
        first=first,
        classes=classes,
        rows=rows if small else [],
        picture=None if small else _draw(share_KK, title),
        confused=_most_confused(counts_KK, classes, title),
    )


def row_shares(counts_KK: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the counts as shares of their row, (K, K); rows without counts are 0."""
    shares: NDArray[np.float64] = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    return shares


def _draw(share_KK: NDArray[np.float64], title: str) -> Picture:
    pixels = np.empty((*share_KK.shape, 4), np.uint8)
    pixels[..., :3] = _INK
    # The square root makes rare confusions visible.
    pixels[..., 3] = (255 * np.sqrt(share_KK)).round()
    return png_picture(Image.fromarray(pixels), f"Confusion matrix of {title}")


def _most_confused(counts_KK: NDArray[np.int64], classes: Sequence[str], title: str) -> Table | None:
    wrong = counts_KK - np.diag(np.diag(counts_KK))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_PAIRS]
    pairs = [(int(n) // len(classes), int(n) % len(classes)) for n in order if wrong.flat[n] > 0]
    if not pairs:
        return None
    rows = [
        text_cells(classes[truth], classes[predicted], f"{counts_KK[truth, predicted]} of {counts_KK[truth].sum()}")
        for truth, predicted in pairs
    ]
    columns = ["true class", "predicted as", "videos"]
    return Table(caption=f"Most frequent confusions of {title}.", columns=columns, rows=rows, text_columns=2)
