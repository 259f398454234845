"""Do the two tasks separate? Retrieval and probe by label and by context, of networks with both heads or one.

By label, over splits that keep scenes apart: test videos look among training videos. By context (the group), over all
videos, since such splits have no right answer for scenes: each video looks among all others, and the probe is tested on
folds that hold their share of every group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmd_eval.data.leakage import training_notes
from cmd_eval.data.splits import Pairing, pair_all, pair_parts, pairing_notes
from cmd_eval.data.table import VideoTable
from cmd_eval.features.source import length_notes, part_words, provenance_of, unique
from cmd_eval.features.store import Features
from cmd_eval.metrics.intervals import Interval, bootstrap_interval, chance_recall_at
from cmd_eval.results.schema import result_record
from cmd_eval.results.tables import figure
from cmd_eval.tasks.retrieval import retrieve
from cmd_eval.tasks.run_probe import fold_pairings, probe
from cmd_train.checkpoints.files import load_checkpoint

HEADS: Mapping[str, tuple[bool, bool]] = {
    "both heads": (True, True),
    "context head only": (True, False),
    "motion head only": (False, True),
}
"""Which network was trained for context, for motion."""

_CELL = 20
Hits = dict[int, list[float]]
"""Number of a video to whether it was right, each time it asked or was tested."""


@dataclass(frozen=True, kw_only=True)
class DecouplingQuestion:
    """What is asked of every network.

    Attributes:
        split_columns: splits for the label; scenes should not be in both of their parts.
        query_part, gallery_part: tested and training part of each.
        seed: decides folds and draws.
    """

    split_columns: Sequence[str] = ("split1",)
    query_part: str = "test"
    gallery_part: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.split_columns or len(set(self.split_columns)) < len(self.split_columns):
            raise ValueError(
                f"split_columns: {', '.join(self.split_columns) or 'none'}; need at least one, and each once"
            )

    @property
    def name(self) -> str:
        """What tells its result file from others; empty for what is usually asked."""
        columns = [] if tuple(self.split_columns) == ("split1",) else self.split_columns
        return "-".join([*columns, *part_words(self.query_part, self.gallery_part)])


def check_heads(name: str, checkpoint: Path) -> None:
    """Refuses a checkpoint that was trained for other tasks than its row says.

    Args:
        name: one of ``HEADS``.
        checkpoint: a checkpoint, or a training's folder.

    Raises:
        ValueError: names the checkpoint and what it was trained for.
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
            f"{loaded.path}: was trained for {tasks or 'neither context nor motion'}, not with {name}; "
            "train one with --set model.motion_head=false (context only) or --set model.context_head=false"
        )


def measure_decoupling(networks: Mapping[str, Features], question: DecouplingQuestion, command: str) -> dict[str, Any]:
    """The table of all networks, as a record for the result file.

    Args:
        networks: name of the row to features, all of the same videos; the first row's make the provenance.
        question: what is asked.
        command: recorded.

    Raises:
        ValueError: a split, part, label or group does not exist, or a video is on both sides.
    """
    first = next(iter(networks.values()))
    by_label, whole, folds = decoupling_pairings(first.videos, question)
    notes = [note for pairing in (*by_label, whole) for note in pairing_notes(first.videos, pairing)]
    alone = sum(map(bool, first.videos.groups)) - len(whole.query)
    if alone:
        notes.append(f"by context: {alone} videos are alone in their group and were left out")
    rows = []
    for name, features in networks.items():
        row, told = _row(features, by_label, whole, folds, question.seed)
        rows.append({"model": name, **row})
        notes += [f"{name}: {note}" for note in told]
    return result_record(
        "decoupling",
        provenance_of(first, command, question.seed),
        split_columns=list(question.split_columns),
        rows=rows,
        chance={
            "by_label": _chance(first.videos, by_label, by_label),
            "by_context": _chance(first.videos, [whole], folds),
        },
        videos={"by_label": _count(by_label), "by_context": _count([whole])},
        notes=unique(notes),
    )


def decoupling_pairings(
    videos: VideoTable, question: DecouplingQuestion
) -> tuple[list[Pairing], Pairing, list[Pairing]]:
    """Who asks and who is found: by label in each split, by group all others, by group in folds.

    Raises:
        ValueError: a split, part, label or group does not exist, or a video is on both sides.
    """
    by_label = [
        pair_parts(videos, column, question.query_part, question.gallery_part, "label")
        for column in question.split_columns
    ]
    whole = pair_all(videos, "group")
    # Retrieval, probe, chance and counts are of the same videos: those that share their group with another one.
    members = Counter(videos.groups)
    shared = np.array([row for row in whole.query if members[videos.groups[row]] > 1], np.int64)
    folds = fold_pairings(videos, "group", seed=question.seed, rows=shared)
    return by_label, replace(whole, query=shared, gallery=shared), folds


def _row(
    features: Features, by_label: Sequence[Pairing], whole: Pairing, folds: Sequence[Pairing], seed: int
) -> tuple[dict[str, Any], list[str]]:
    """The figures of one network, and what to know of them."""
    source = features.provenance
    notes = length_notes(features)
    for pairing in (*by_label, whole):
        notes += training_notes(source, features.videos, pairing.query, pairing.split_column, "queries")
    label_figures, label_notes = _measure(features, by_label, by_label, seed)
    context_figures, context_notes = _measure(features, [whole], folds, seed)
    row = {
        "features": source.features,
        "checkpoint": source.checkpoint,
        "checkpoint_sha256": source.checkpoint_sha256,
        "untrained": source.untrained,
        "by_label": label_figures,
        "by_context": context_figures,
    }
    return row, [*notes, *label_notes, *context_notes]


def _measure(
    features: Features, retrieved: Sequence[Pairing], probed: Sequence[Pairing], seed: int
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Figures of retrieval and probe, and notes on the probes."""
    found: Hits = {}
    for pairing in retrieved:
        result = retrieve(features, pairing, ranks=(1,))
        _collect(found, result.pairing.query, result.hits[1].astype(np.float64))
    told: Hits = {}
    notes = []
    for pairing in probed:
        fitted = probe(features, pairing, "linear", seed=seed)
        _collect(told, pairing.query, fitted.hits(1))
        notes += fitted.notes
    return {"retrieval": over_videos(found, seed).as_json(), "probe": over_videos(told, seed).as_json()}, notes


def _collect(hits: Hits, rows: NDArray[np.int64], right_N: NDArray[np.float64]) -> None:
    for row, right in zip(rows.tolist(), right_N.tolist(), strict=True):
        hits.setdefault(row, []).append(right)


def over_videos(hits: Mapping[int, Sequence[float]], seed: int = 0) -> Interval:
    """Mean over videos with its interval; a video that several splits test counts once, with its own mean."""
    return bootstrap_interval(np.array([np.mean(hits[row]) for row in sorted(hits)]), seed=seed)


def _chance(videos: VideoTable, retrieved: Sequence[Pairing], probed: Sequence[Pairing]) -> dict[str, float]:
    def mean(pairings: Sequence[Pairing]) -> float:
        shares, sizes = [], []
        for pairing in pairings:
            names = videos.names(pairing.kind)
            wanted, offered = [names[row] for row in pairing.query], [names[row] for row in pairing.gallery]
            shares.append(chance_recall_at(wanted, offered, 1, leave_one_out=pairing.leave_one_out))
            sizes.append(len(pairing.query))
        return float(np.average(shares, weights=sizes))

    return {"retrieval": mean(retrieved), "probe": mean(probed)}


def _count(pairings: Sequence[Pairing]) -> int:
    return len({int(row) for pairing in pairings for row in pairing.query})


def decoupling_table(record: Mapping[str, Any]) -> str:
    """The table as plain text."""
    parts = [(by, measure) for by in ("by_label", "by_context") for measure in ("retrieval", "probe")]
    width = max(len(row["model"]) for row in record["rows"]) + 4
    heads = ["label: R@1", "label: probe", "context: R@1", "context: probe"]
    lines = ["%, 95 % interval".ljust(width) + "".join(head.rjust(_CELL) for head in heads)]
    for row in record["rows"]:
        lines.append(row["model"].ljust(width) + "".join(figure(row[by][m]).rjust(_CELL) for by, m in parts))
    chance = record["chance"]
    lines.append("chance".ljust(width) + "".join(f"{100 * chance[by][m]:.1f}".rjust(_CELL) for by, m in parts))
    videos = record["videos"]
    lines.append(f"{videos['by_label']} videos tested by label, {videos['by_context']} by context")
    return "\n".join(lines)
