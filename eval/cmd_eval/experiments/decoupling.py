"""Test whether the pretext tasks separate: retrieval and probe by label and by context, for one head or both.

By label, over splits that keep scenes apart: test videos are queries, training videos the gallery. By context (the
group), over all videos, because in such splits the gallery never contains the scene of a query: leave-one-out
retrieval, and a probe on folds stratified by group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmd_eval.data.leakage import training_notes
from cmd_eval.data.splits import EvalSplit, gallery_counts, leave_one_out_split, part_split, split_notes
from cmd_eval.data.table import VideoTable
from cmd_eval.features.source import length_notes, result_provenance, unique
from cmd_eval.features.store import Features
from cmd_eval.metrics.intervals import Interval, mean_interval
from cmd_eval.metrics.retrieval import chance_recall
from cmd_eval.results.schema import part_suffixes, result_record
from cmd_eval.results.tables import format_share
from cmd_eval.tasks.retrieval import retrieve
from cmd_eval.tasks.run_probe import fold_splits, probe
from cmd_extract.console.tables import format_table
from cmd_train.checkpoints.files import load_checkpoint

HEADS: Mapping[str, tuple[bool, bool]] = {
    "both heads": (True, True),
    "context head only": (True, False),
    "motion head only": (False, True),
}
"""Row names, and whether the network has the context head and the motion head."""

Hits = dict[int, list[float]]
"""Hits (1) and misses (0) of each video, by video index."""


@dataclass(frozen=True, kw_only=True)
class DecouplingSpec:
    """Evaluation of every network.

    Attributes:
        split_columns: splits for the label; scenes should not be in both of their parts.
        test_part, train_part: parts of each split.
        seed: seed of folds and resampling.
    """

    split_columns: Sequence[str]
    test_part: str = "test"
    train_part: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.split_columns or len(set(self.split_columns)) < len(self.split_columns):
            raise ValueError(
                f"split_columns: {', '.join(self.split_columns) or 'none'}; need at least one, without duplicates"
            )

    @property
    def name(self) -> str:
        """Part of the name of the result file."""
        return "-".join([*self.split_columns, *part_suffixes(self.test_part, self.train_part)])


def check_heads(name: str, checkpoint: Path) -> None:
    """Check that a checkpoint was trained with the heads of its row.

    Args:
        name: one of ``HEADS``.
        checkpoint: checkpoint or run folder.

    Raises:
        ValueError: it was trained with other heads.
    """
    loaded = load_checkpoint(checkpoint)
    settings = loaded.config["settings"]
    model, loss = settings.get("model", {}), settings.get("loss", {})
    trained = tuple(
        bool(model.get(f"{head}_head", False)) and loss.get(f"{head}_weight", 1.0) > 0 for head in ("context", "motion")
    )
    if trained != HEADS[name]:
        tasks = " and ".join(task for task, on in zip(("context", "motion"), trained, strict=True) if on)
        raise ValueError(
            f"{loaded.path}: trained for {tasks or 'neither context nor motion'}, expected a network with {name}; "
            "cmd-train has the settings model.context_head and model.motion_head"
        )


def measure_decoupling(networks: Mapping[str, Features], spec: DecouplingSpec, command: str) -> dict[str, Any]:
    """Evaluate all networks.

    Args:
        networks: features by row name, all of the same videos; provenance is taken from the first.
        spec: the evaluation.
        command: command line, recorded.

    Returns:
        The content of the result file.

    Raises:
        ValueError: a split, part, label or group does not exist, or a video is on both sides.
    """
    first = next(iter(networks.values()))
    by_label, whole, folds = decoupling_splits(first.videos, spec)
    notes = [note for split in (*by_label, whole) for note in split_notes(first.videos, split)]
    alone = sum(map(bool, first.videos.groups)) - len(whole.query)
    if alone:
        others = " but their file's segments" if whole.exclude_same == "source" else ""
        notes.append(f"by context: left out {alone} videos that are alone in their group{others}")
    rows = []
    for name, features in networks.items():
        row, row_notes = _row(features, by_label, whole, folds, spec.seed)
        rows.append({"model": name, **row})
        notes += [f"{name}: {note}" for note in row_notes]
    return result_record(
        "decoupling",
        result_provenance(first, command, spec.seed),
        split_columns=list(spec.split_columns),
        rows=rows,
        chance={
            "by_label": _chance(first.videos, by_label, by_label),
            "by_context": _chance(first.videos, [whole], folds),
        },
        videos={"by_label": _count(by_label), "by_context": _count([whole])},
        notes=unique(notes),
    )


def decoupling_splits(videos: VideoTable, spec: DecouplingSpec) -> tuple[list[EvalSplit], EvalSplit, list[EvalSplit]]:
    """Return the splits by label, the leave-one-out split by group, and the folds by group.

    Raises:
        ValueError: a split, part, label or group does not exist, or a video is on both sides.
    """
    by_label = [part_split(videos, column, spec.test_part, spec.train_part, "label") for column in spec.split_columns]
    whole = leave_one_out_split(videos, "group")
    # Retrieval, probe, chance and counts use the same videos: those that can have a hit.
    shared = whole.query[gallery_counts(videos, whole)[1] > 0]
    folds = fold_splits(videos, "group", seed=spec.seed, rows=shared)
    return by_label, replace(whole, query=shared, gallery=shared), folds


def _row(
    features: Features, by_label: Sequence[EvalSplit], whole: EvalSplit, folds: Sequence[EvalSplit], seed: int
) -> tuple[dict[str, Any], list[str]]:
    """Evaluate one network; return its row and notes."""
    source = features.provenance
    notes = length_notes(features)
    for split in (*by_label, whole):
        notes += training_notes(source, features.videos, split.query, split.split_column, "queries")
    label_values, label_notes = _measure(features, by_label, by_label, seed)
    context_values, context_notes = _measure(features, [whole], folds, seed)
    row = {
        "features": source.features,
        "checkpoint": source.checkpoint,
        "checkpoint_sha256": source.checkpoint_sha256,
        "untrained": source.untrained,
        "by_label": label_values,
        "by_context": context_values,
    }
    return row, [*notes, *label_notes, *context_notes]


def _measure(
    features: Features, retrieved: Sequence[EvalSplit], probed: Sequence[EvalSplit], seed: int
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Evaluate retrieval and probe over several splits; return their values and notes on the probes."""
    retrieval_hits: Hits = {}
    for split in retrieved:
        result = retrieve(features, split, ranks=(1,))
        _collect(retrieval_hits, result.split.query, result.hits[1].astype(np.float64))
    probe_hits: Hits = {}
    notes = []
    for split in probed:
        fitted = probe(features, split, "logistic", seed=seed)
        _collect(probe_hits, split.query, fitted.hits(1))
        notes += fitted.notes
    groups = features.videos.units
    values = {"retrieval": over_videos(retrieval_hits, groups, seed), "probe": over_videos(probe_hits, groups, seed)}
    return {measure: value.as_json() for measure, value in values.items()}, notes


def _collect(hits: Hits, rows: NDArray[np.int64], hits_N: NDArray[np.float64]) -> None:
    for row, hit in zip(rows.tolist(), hits_N.tolist(), strict=True):
        hits.setdefault(row, []).append(hit)


def over_videos(hits: Mapping[int, Sequence[float]], groups: Sequence[str], seed: int = 0) -> Interval:
    """Return the mean over videos with its interval; a video tested by several splits counts once, with its mean."""
    rows = sorted(hits)
    return mean_interval(np.array([np.mean(hits[row]) for row in rows]), [groups[row] for row in rows], seed=seed)


def _chance(videos: VideoTable, retrieved: Sequence[EvalSplit], probed: Sequence[EvalSplit]) -> dict[str, float]:
    def mean(splits: Sequence[EvalSplit]) -> float:
        shares, sizes = [], []
        for split in splits:
            shares.append(chance_recall(*gallery_counts(videos, split), 1))
            sizes.append(len(split.query))
        return float(np.average(shares, weights=sizes))

    return {"retrieval": mean(retrieved), "probe": mean(probed)}


def _count(splits: Sequence[EvalSplit]) -> int:
    return len({int(row) for split in splits for row in split.query})


def decoupling_table(record: Mapping[str, Any]) -> str:
    """Format the result as a text table."""
    parts = [(by, measure) for by in ("by_label", "by_context") for measure in ("retrieval", "probe")]
    rows = [[row["model"], *(format_share(row[by][measure]) for by, measure in parts)] for row in record["rows"]]
    rows.append(["chance", *(f"{100 * record['chance'][by][measure]:.1f}" for by, measure in parts)])
    columns = ["% (95 % interval)", "label: R@1", "label: probe", "context: R@1", "context: probe"]
    videos = record["videos"]
    table = format_table(columns, rows)
    return f"{table}\n{videos['by_label']} test videos by label, {videos['by_context']} videos by context"
