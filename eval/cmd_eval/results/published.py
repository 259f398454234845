"""Published results for comparison in the report."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

_PAPER = "Huang et al., CVPR 2021, arXiv:2104.00862"
_OWN_PAPER = "the method's own paper"
_HERE = "CMD"


@dataclass(frozen=True, kw_only=True)
class PublishedFigure:
    """A published figure, for clips of 112 x 112 pixels.

    Attributes:
        measure: ``fine-tuned top-1``, ``retrieval R@10`` or ``retrieval R@1``.
        method: name of the method.
        backbone: network architecture; empty if the source compares several.
        pretrained_on: dataset of the self-supervised pre-training.
        by_dataset: figure for each dataset, as a fraction.
        source: publication.
    """

    measure: str
    method: str
    backbone: str
    pretrained_on: str
    by_dataset: Mapping[str, float]
    source: str

    def __post_init__(self) -> None:
        for name, value in self.by_dataset.items():
            if not 0 <= value <= 1:
                raise ValueError(f"by_dataset: {name} {value} is not between 0 and 1")


def _paper(measure: str, backbone: str, pretrained_on: str, ucf101: float, hmdb51: float) -> PublishedFigure:
    return PublishedFigure(
        measure=measure,
        method=_HERE,
        backbone=backbone,
        pretrained_on=pretrained_on,
        by_dataset={"UCF101": ucf101, "HMDB51": hmdb51},
        source=_PAPER,
    )


def _later(method: str, ucf101: float) -> PublishedFigure:
    return PublishedFigure(
        measure="retrieval R@1",
        method=method,
        backbone="",
        pretrained_on="UCF101",
        by_dataset={"UCF101": ucf101},
        source=_OWN_PAPER,
    )


PUBLISHED = (
    _paper("retrieval R@10", "C3D", "UCF101", 0.669, 0.500),
    _paper("retrieval R@10", "R(2+1)D-26", "UCF101", 0.652, 0.485),
    _paper("retrieval R@10", "R3D-26", "UCF101", 0.658, 0.514),
    _later("CoCLR", 0.518),
    _later("TCLR", 0.562),
    _later("MSCL", 0.656),
    _paper("fine-tuned top-1", "C3D", "UCF101", 0.786, 0.469),
    _paper("fine-tuned top-1", "R(2+1)D-26", "UCF101", 0.797, 0.486),
    _paper("fine-tuned top-1", "R3D-26", "UCF101", 0.766, 0.472),
    _paper("fine-tuned top-1", "C3D", "Kinetics-400", 0.834, 0.529),
    _paper("fine-tuned top-1", "R(2+1)D-26", "Kinetics-400", 0.857, 0.540),
    _paper("fine-tuned top-1", "R3D-26", "Kinetics-400", 0.837, 0.552),
)
"""Retrieval and fine-tuning results on split 1 of each dataset."""

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
