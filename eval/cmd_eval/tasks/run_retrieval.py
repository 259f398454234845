"""Runs retrieval on features over one or several splits: result table and record out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cmd_eval.data.leakage import training_notes
from cmd_eval.data.splits import Pairing, pair_all, pair_parts, pairing_notes
from cmd_eval.data.table import LABEL_KINDS, VideoTable
from cmd_eval.features.source import length_notes, part_words, provenance_of, unique
from cmd_eval.features.store import Features
from cmd_eval.results.schema import LEAVE_ONE_OUT, result_record
from cmd_eval.tasks.retrieval import RetrievalResult, mean_over_splits, retrieve


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which videos look for which.

    Attributes:
        split_columns: split columns of the manifest; unused in leave-one-out.
        query_part, gallery_part: parts of each.
        kinds: ``label``, ``group`` or both.
        leave_one_out: every video looks among all others instead.
        seed: decides the draws of the intervals.
    """

    split_columns: Sequence[str] = ("split1",)
    query_part: str = "test"
    gallery_part: str = "train"
    kinds: Sequence[str] = ("label",)
    leave_one_out: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in (("split_columns", self.split_columns), ("kinds", self.kinds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: {', '.join(values) or 'none'}; need at least one, and each once")
        for kind in self.kinds:
            if kind not in LABEL_KINDS:
                raise ValueError(f"kinds: {kind!r} is not one of {', '.join(LABEL_KINDS)}")

    @property
    def name(self) -> str:
        """What tells its result file from others."""
        if self.leave_one_out:
            return "-".join([LEAVE_ONE_OUT, *self.kinds])
        return "-".join([*self.split_columns, *part_words(self.query_part, self.gallery_part), *self.kinds])


@dataclass(frozen=True, kw_only=True)
class RetrievalRun:
    """What a retrieval evaluation gives.

    Attributes:
        results: one a split and kind of label.
        record: everything for the JSON file.
        notes: what the user should know of the data, a line each.
    """

    results: tuple[RetrievalResult, ...]
    record: dict[str, Any]
    notes: tuple[str, ...]


def run_retrieval(features: Features, question: Question, command: str) -> RetrievalRun:
    """Retrieves by features of whole videos.

    Args:
        features: of all videos.
        question: which look for which.
        command: recorded.

    Raises:
        ValueError: a split, a part or a label does not exist, or a query is in the gallery.
    """
    results, notes = [], length_notes(features)
    for pairing in pairings(features.videos, question):
        notes += pairing_notes(features.videos, pairing)
        notes += training_notes(features.provenance, features.videos, pairing.query, pairing.split_column, "queries")
        results.append(retrieve(features, pairing))
    told = unique(notes)
    record = result_record(
        "retrieval",
        provenance_of(features, command, question.seed),
        splits=[result.as_json(features.videos, question.seed) for result in results],
        mean=mean_over_splits(results),
        notes=told,
    )
    return RetrievalRun(results=tuple(results), record=record, notes=tuple(told))


def pairings(videos: VideoTable, question: Question) -> list[Pairing]:
    """The queries and galleries of a question, by kind of label and split; all are checked before the first is used.

    Raises:
        ValueError: a split, a part or a label does not exist, or a query is in the gallery.
    """
    if question.leave_one_out:
        return [pair_all(videos, kind) for kind in question.kinds]
    return [
        pair_parts(videos, column, question.query_part, question.gallery_part, kind)
        for kind in question.kinds
        for column in question.split_columns
    ]
