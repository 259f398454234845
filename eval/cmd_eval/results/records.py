"""Content of result files: one typed definition that writer and reader share. Here: retrieval, probes, recognition.

``cmd_eval.results.files`` checks every result against it, when it is written and when it is read. Shares and their
differences are fractions. Unknown fields are errors, so that a field cannot be written without being defined here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from cmd_eval.results.schema import Provenance

# Sums of floating-point numbers may exceed the limits by their rounding error.
Share = Annotated[float, Meta(ge=-1e-9, le=1 + 1e-9)]
Count = Annotated[int, Meta(ge=0)]
AtLeastOne = Annotated[int, Meta(ge=1)]
Target = Literal["label", "group"]


def _require_equal(name: str, found: int, expected: int, of: str) -> None:
    if found != expected:
        raise ValueError(f"{name}: {found} entries for {expected} {of}")


@dataclass(frozen=True, kw_only=True)
class RecordedProvenance(Provenance):
    """Provenance as written: see ``Provenance.as_json``.

    Attributes:
        created: time of writing.
        versions: package names and versions.
    """

    created: datetime
    versions: Mapping[str, str]


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a result."""


class Figure(Part, frozen=True, kw_only=True):
    """A share with its 95 % interval, and what the interval is over; see ``cmd_eval.metrics.intervals.Interval``."""

    value: Share
    low: Share
    high: Share
    unit: Literal["videos", "groups"]
    units: AtLeastOne | None

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"value: {self.value} is not between low = {self.low} and high = {self.high}")


class Mean(Part, frozen=True, kw_only=True):
    """Mean over splits with their sample standard deviation; see ``cmd_eval.results.schema.mean_and_spread``."""

    value: Share
    spread: float | None
    splits: AtLeastOne


class QueryHit(Part, frozen=True, kw_only=True):
    """A query: its class (label or group), its group, and the rank of the nearest video of its class.

    ``rank`` starts at 1; it is None if none of the ``searched`` nearest videos has the class.
    """

    video: str
    class_: str = field(name="class")
    group: str
    rank: AtLeastOne | None


class ClassRecall(Part, frozen=True, kw_only=True):
    """R@k over the queries of one class."""

    class_: str = field(name="class")
    queries: Count
    recall: dict[str, Figure]


class Neighbor(Part, frozen=True, kw_only=True):
    """A neighbor of an example."""

    video: str
    label: str
    similarity: float
    hit: bool


class Example(Part, frozen=True, kw_only=True):
    """A query with its nearest videos."""

    query: str
    query_label: str
    neighbors: list[Neighbor]


class RetrievalSplit(Part, frozen=True, kw_only=True):
    """Retrieval on one split; ``searched`` is the number of neighbors in which ``rank`` was searched."""

    split_column: str
    test_part: str
    train_part: str
    target: Target
    queries: AtLeastOne
    gallery: AtLeastOne
    unlabeled_left_out: Count
    copies_left_out: Count
    exclude_same: Literal["group", "source"] | None = None
    searched: AtLeastOne
    recall: dict[str, Figure]
    chance: dict[str, Share]
    per_class: list[ClassRecall]
    videos: list[QueryHit]
    examples: list[Example]

    def __post_init__(self) -> None:
        _require_equal("videos", len(self.videos), self.queries, "queries")
        if "R@1" not in self.recall:
            raise ValueError("recall: without R@1")
        if self.recall.keys() != self.chance.keys():
            raise ValueError(f"chance: for {', '.join(self.chance)}, recall is for {', '.join(self.recall)}")


class MeanRecall(Part, frozen=True, kw_only=True):
    """Means of R@k over the splits of a target."""

    target: Target
    recall: dict[str, Mean]


class Result(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """Fields of all results; ``kind`` is the tag of the class."""

    format: Literal[1]
    provenance: RecordedProvenance
    notes: list[str]


class Retrieval(Result, frozen=True, kw_only=True, tag="retrieval"):
    """Result of ``cmd-eval retrieval`` and ``cmd-eval baseline``."""

    splits: Annotated[list[RetrievalSplit], Meta(min_length=1)]
    mean: list[MeanRecall]


class Prediction(Part, frozen=True, kw_only=True):
    """Prediction for a test video; ``top1`` and ``top5`` say whether its class is among the most likely ones.

    ``confidence`` is the probability of the predicted class; None for probes, whose scores are not probabilities.
    """

    video: str
    class_: str = field(name="class")
    group: str
    predicted: str
    top1: bool
    top5: bool
    confidence: Share | None = None


class ClassAccuracy(Part, frozen=True, kw_only=True):
    """Accuracy over the test videos of one class; None if there are none."""

    class_: str = field(name="class")
    test: Count
    accuracy: Share | None
    low: Share | None
    high: Share | None
    unit: Literal["videos", "groups"] | None = None
    units: AtLeastOne | None = None


class Accuracy(Part, frozen=True, kw_only=True):
    """Classification of the test videos of one split; rows of ``confusion`` are true classes."""

    split_column: str
    train_part: str
    test_part: str
    target: Target
    train: Count | None = None
    test: AtLeastOne
    unlabeled_left_out: Count
    copies_left_out: Count
    classes: list[str]
    chance: Share | None
    top1: Figure
    top5: Figure
    per_class: list[ClassAccuracy]
    confusion: list[list[Count]]
    videos: list[Prediction]

    def __post_init__(self) -> None:
        _require_equal("videos", len(self.videos), self.test, "test videos")
        _require_equal("per_class", len(self.per_class), len(self.classes), "classes")
        _require_equal("confusion", len(self.confusion), len(self.classes), "classes")
        for row in self.confusion:
            _require_equal("confusion: a row", len(row), len(self.classes), "classes")


class MeanAccuracy(Part, frozen=True, kw_only=True):
    """Means of top-1 and top-5 over the splits of a target."""

    target: Target
    top1: Mean
    top5: Mean


class Validation(Part, frozen=True, kw_only=True):
    """Cross-validation on the training videos: accuracy of each value of the parameter."""

    folds: AtLeastOne
    grouped: bool
    top1: dict[str, Share]


class LowLabelDraw(Part, frozen=True, kw_only=True):
    """A probe trained on some of the training videos; ``validated`` is false if its parameters are fixed."""

    train: AtLeastOne
    top1: Share
    chosen: dict[str, float]
    validated: bool


class LowLabel(Part, frozen=True, kw_only=True):
    """Top-1 with few labels: mean and standard deviation over draws (the field ``splits`` is their number)."""

    percent: float
    top1: Mean
    draws: list[LowLabelDraw]


class ProbeSplit(Accuracy, frozen=True, kw_only=True):
    """A probe on one split; ``chosen`` are its parameters, as selected by ``validation``."""

    chosen: dict[str, float]
    validation: Validation
    low_label: list[LowLabel] = []


class Probe(Result, frozen=True, kw_only=True, tag="probe"):
    """Result of ``cmd-eval probe``."""

    method: str
    splits: Annotated[list[ProbeSplit], Meta(min_length=1)]
    mean: list[MeanAccuracy]


class RecognitionSplit(Accuracy, frozen=True, kw_only=True):
    """A fine-tuned network on one split; ``provenance`` is given if the result contains several checkpoints."""

    clips: AtLeastOne
    trained_on_split_column: str | None
    seed: int
    checkpoint: str
    classes_unknown: list[str]
    provenance: RecordedProvenance | None = None


class Recognition(Result, frozen=True, kw_only=True, tag="recognition"):
    """Result of ``cmd-eval recognition``."""

    method: Literal["finetuned"]
    clips: AtLeastOne | None
    splits: Annotated[list[RecognitionSplit], Meta(min_length=1)]
    mean: list[MeanAccuracy]
