"""A confusion matrix as a page shows it: a table of counts, or a picture if there are many classes.

Shape legend: K classes; rows are the truth, columns the prediction.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmd_eval.report.pictures import Picture, data_uri
from cmd_eval.report.report_figures import Cell, Table, words

MOST_CLASSES_IN_TABLE = 24
_MOST_PAIRS = 10
_INK = (0, 92, 158)  # seen on white as on black; how much of it is the alpha channel


@dataclass(frozen=True, kw_only=True)
class ConfusionCell:
    """A count, and its share (0 to 1) of the row."""

    count: int
    share: float


@dataclass(frozen=True, kw_only=True)
class ConfusionView:
    """A confusion matrix to show.

    Attributes:
        title: whose it is.
        first: whether it is of the first split, and so shown at once.
        classes: names of rows and columns.
        rows: cells of the table; empty if there are too many classes for one.
        picture: shown instead then.
        confused: the pairs that are confused most often.
    """

    title: str
    first: bool
    classes: Sequence[str]
    rows: Sequence[Sequence[ConfusionCell]]
    picture: Picture | None
    confused: Table | None


def view_confusion(title: str, split: Mapping[str, Any], *, first: bool = True) -> ConfusionView:
    """The confusion matrix of a split's result.

    Args:
        title: whose it is.
        first: whether it is of the first split.
        split: with ``classes`` (K names) and ``confusion`` (K rows of K counts).

    Raises:
        ValueError: the matrix has not K x K counts.
    """
    classes = [str(name) for name in split["classes"]]
    counts_KK = np.asarray(split["confusion"], np.int64)
    if counts_KK.shape != (len(classes), len(classes)):
        raise ValueError(f"confusion: {counts_KK.shape} counts for {len(classes)} classes")
    share_KK = row_shares(counts_KK)
    small = len(classes) <= MOST_CLASSES_IN_TABLE
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
        confused=_most_confused(counts_KK, classes),
    )


def row_shares(counts_KK: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K, K), each row's counts as shares of its sum; 0 in rows without any."""
    shares: NDArray[np.float64] = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    return shares


def _draw(share_KK: NDArray[np.float64], title: str) -> Picture:
    pixels = np.empty((*share_KK.shape, 4), np.uint8)
    pixels[..., :3] = _INK
    # The square root lets rare confusions be seen.
    pixels[..., 3] = (255 * np.sqrt(share_KK)).round()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    side = len(share_KK)
    return Picture(uri=data_uri("image/png", stream.getvalue()), width=side, height=side, alt=f"Matrix of {title}")


def _most_confused(counts_KK: NDArray[np.int64], classes: Sequence[str]) -> Table | None:
    wrong = counts_KK - np.diag(np.diag(counts_KK))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]
    pairs = [(int(n) // len(classes), int(n) % len(classes)) for n in order if wrong.flat[n] > 0]
    if not pairs:
        return None
    rows: list[list[Cell]] = [
        words(classes[truth], classes[said], f"{counts_KK[truth, said]} of {counts_KK[truth].sum()}")
        for truth, said in pairs
    ]
    return Table(caption="Confused most often.", columns=["is", "taken for", "videos"], rows=rows, text_columns=2)
