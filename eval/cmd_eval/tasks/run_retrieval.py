"""Run retrieval on features over one or several splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cmd_eval.data.leakage import training_notes
from cmd_eval.data.splits import EvalSplitSpec, eval_splits, split_notes
from cmd_eval.features.source import length_notes, result_provenance, unique
from cmd_eval.features.store import Features
from cmd_eval.results.schema import result_record
from cmd_eval.tasks.retrieval import RetrievalResult, mean_over_splits, retrieve


@dataclass(frozen=True, kw_only=True)
class RetrievalRun:
    """Result of a retrieval evaluation.

    Attributes:
        results: one for each split and target.
        record: content of the result file.
        notes: notes on the data for the user.
    """

    results: tuple[RetrievalResult, ...]
    record: dict[str, Any]
    notes: tuple[str, ...]


def run_retrieval(features: Features, spec: EvalSplitSpec, command: str) -> RetrievalRun:
    """Retrieve videos by their features.

    Args:
        features: features of all videos.
        spec: splits, parts and targets.
        command: command line, recorded as provenance.

    Raises:
        ValueError: a split, a part or a label does not exist, or a query is in the gallery.
    """
    results, notes = [], length_notes(features)
    for split in eval_splits(features.videos, spec):
        notes += split_notes(features.videos, split)
        notes += training_notes(features.provenance, features.videos, split.query, split.split_column, "queries")
        results.append(retrieve(features, split))
    notes = unique(notes)
    record = result_record(
        "retrieval",
        result_provenance(features, command, spec.seed),
        splits=[result.as_json(features.videos, spec.seed) for result in results],
        mean=mean_over_splits(results),
        notes=notes,
    )
    return RetrievalRun(results=tuple(results), record=record, notes=tuple(notes))
