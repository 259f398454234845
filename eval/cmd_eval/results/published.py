"""Published results for comparison in the report; the figures are in ``published.csv``."""

from __future__ import annotations

import csv
import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources

_FILE = "published.csv"


@dataclass(frozen=True, kw_only=True)
class PublishedFigure:
    """A published figure on split 1 of a dataset.

    Attributes:
        measure: ``fine-tuned top-1``, ``retrieval R@10`` or ``retrieval R@1``.
        method: name of the method.
        backbone: network architecture.
        input_px: side of the network's input in pixels; None if it was not checked against the source.
        pretrained_on: dataset of the self-supervised pre-training; empty if it was not checked against the source.
        by_dataset: figure for each dataset, as a fraction.
        source: publication.
    """

    measure: str
    method: str
    backbone: str
    input_px: int | None
    pretrained_on: str
    by_dataset: Mapping[str, float]
    source: str

    def __post_init__(self) -> None:
        for name in ("measure", "method", "backbone", "source"):
            if not getattr(self, name):
                raise ValueError(f"{name}: empty for {self.method or 'a published result'}")
        if self.input_px is not None and self.input_px < 1:
            raise ValueError(f"input_px: {self.input_px} of {self.method} is not positive")
        for name, value in self.by_dataset.items():
            if not 0 <= value <= 1:
                raise ValueError(f"by_dataset: {name} {value} is not between 0 and 1")


@functools.cache
def published_figures() -> tuple[PublishedFigure, ...]:
    """Return the published results, in the order of the file.

    Raises:
        ValueError: a row of the file is invalid, or a figure is given twice.
    """
    text = resources.files("cmd_eval.results").joinpath(_FILE).read_text("utf-8")
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for number, row in enumerate(csv.DictReader(text.splitlines()), start=2):
        key = tuple(row[name] for name in ("measure", "method", "backbone", "input_px", "pretrained_on", "source"))
        by_dataset = found.setdefault(key, {})
        if row["dataset"] in by_dataset:
            raise ValueError(f"{_FILE}, line {number}: repeats an earlier line")
        by_dataset[row["dataset"]] = float(row["percent"]) / 100
    return tuple(
        PublishedFigure(
            measure=measure,
            method=method,
            backbone=backbone,
            input_px=int(size) if size else None,
            pretrained_on=pretrained_on,
            by_dataset=by_dataset,
            source=source,
        )
        for (measure, method, backbone, size, pretrained_on, source), by_dataset in found.items()
    )


# Number of classes, and class names that no other dataset has.
_SIGNATURES = {
    "UCF101": (101, {"ApplyEyeMakeup", "BandMarching", "YoYo"}),
    "HMDB51": (51, {"brush_hair", "draw_sword", "shoot_bow"}),
}


def identify_dataset(labels: Collection[str]) -> str | None:
    """Return the name of the published dataset with exactly these class names, or None.

    Args:
        labels: names of all classes.
    """
    names = set(labels) - {""}
    for dataset, (classes, unique_names) in _SIGNATURES.items():
        if len(names) == classes and unique_names <= names:
            return dataset
    return None
