"""Run ``cmd-eval evidence``: train what is missing, evaluate everything, write one result file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from cmd_eval.data.splits import EvalSplit, split_notes
from cmd_eval.data.table import VideoTable
from cmd_eval.experiments.auxiliary import check_comparison, compare_auxiliary
from cmd_eval.experiments.evidence import Measurement, Row, chance, differences, measure
from cmd_eval.experiments.jobs import train_all
from cmd_eval.experiments.plan import (
    HEADLINE,
    READOUTS,
    EvidencePlan,
    PretrainingRun,
    evidence_splits,
    is_finished,
)
from cmd_eval.features.handcrafted import color_histogram_features, motion_grid_features
from cmd_eval.features.readout import ReadoutName
from cmd_eval.features.source import FeatureSource, length_notes, open_features, unique
from cmd_eval.features.store import COLOR_HISTOGRAM, MOTION_GRIDS, Features
from cmd_eval.results.files import read_result, write_result
from cmd_eval.results.schema import EVAL_FOLDER, Provenance, result_record
from cmd_eval.results.tables import evidence_table
from cmd_extract.console.progress import ProgressDisplay
from cmd_extract.console.tables import format_markdown
from cmd_extract.shard.folders import join_paths, open_folders
from cmd_extract.shard.reader import ShardSet
from cmd_extract.system.files import write_atomically
from cmd_train.checkpoints.files import load_checkpoint

UNTRAINED = "untrained"
BASELINES = {MOTION_GRIDS: motion_grid_features, COLOR_HISTOGRAM: color_histogram_features}

_OF_AUXILIARY = ("difference", "mean", "pairs", "pretraining", "notes")
_SEEN_NOTE = "by group, queries include videos that a network was pre-trained on (without labels)"


@dataclass(frozen=True, kw_only=True)
class EvidenceRun:
    """Result of the command.

    Attributes:
        record: content of the result file.
        result_path: the result file.
    """

    record: dict[str, Any]
    result_path: Path


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run a plan.

    Attributes:
        command: command line, recorded.
        log: prints a line.
        at_once: number of pre-training runs in parallel.
        seed: seed of probes and intervals.
    """

    command: str
    log: Callable[[str], None]
    at_once: int = 1
    seed: int = 0


def run_evidence(
    plan: EvidencePlan, options: RunOptions, *, speed: Sequence[Mapping[str, Any]] | None = None
) -> EvidenceRun:
    """Train what is missing, evaluate, and write ``eval/evidence.json`` and ``.md`` in the output folder.

    Finished runs are kept and interrupted ones continue. The result file is first written when the first claim has been
    measured, and again after the supervised runs.

    Args:
        plan: the training runs.
        options: how to run them.
        speed: benchmark entries for the third claim; None keeps those of an earlier result file.

    Raises:
        ValueError: videos without labels or groups, invalid splits or settings, a folder that contains other runs, or
            an unreadable earlier result file.
        RuntimeError: a training run failed.
        KeyboardInterrupt: interrupted; unfinished runs have been saved.
    """
    shards = open_folders(plan.shards)
    videos = VideoTable.of(shards.videos)
    by_label, by_group = evidence_splits(videos, plan.split_columns)
    comparison = plan.comparison
    if comparison is not None:
        check_comparison(comparison)
    path = plan.out / EVAL_FOLDER / "evidence.json"
    if speed is None and path.is_file():  # read it before hours of training: it may be unreadable
        speed = read_result(path, "evidence")["speed"]
    _train(plan, shards.data_hash, options)
    rows, notes = _rows(plan, shards, by_label, by_group, options)
    record = _record(plan, shards.data_hash, rows, options)
    all_notes = [note for split in (*by_label, *by_group) for note in split_notes(videos, split)]
    record |= {"notes": unique([*all_notes, *notes, _SEEN_NOTE]), "speed": speed, "auxiliary": None}
    _write(path, record)
    if comparison is not None:
        options.log(f"retrieval results written to {path}; starting the supervised runs")
        auxiliary = compare_auxiliary(
            comparison,
            command=options.command,
            log=lambda text: options.log(f"supervised {text}"),
            at_once=options.at_once,
        )
        write_result(path.with_name("auxiliary.json"), auxiliary.record)
        record["auxiliary"] = {name: auxiliary.record[name] for name in _OF_AUXILIARY}
        _write(path, record)
    return EvidenceRun(record=record, result_path=path)


def _write(path: Path, record: Mapping[str, Any]) -> None:
    """Write the result file, and the same tables as Markdown beside it."""
    write_result(path, record)
    text = evidence_table(record, format_markdown) + "\n"
    write_atomically(path.with_suffix(".md"), text)


def _train(plan: EvidencePlan, data_hash: str, options: RunOptions) -> None:
    runs = plan.pretraining_runs
    # Check all folders before the first run starts, so that one with other contents is reported at once.
    finished = {run: is_finished(plan, run, data_hash) for run in runs}
    titles = {}
    for number, run in enumerate(runs, 1):
        title = f"pre-training run {number} of {len(runs)}: {run.split_column}, seed {run.seed}, {run.network}"
        titles[plan.run_dir(run).name] = title
        if finished[run]:
            options.log(f"{title} (already done)")
    jobs = {plan.run_dir(run).name: plan.arguments(run) for run in runs if not finished[run]}
    train_all(jobs, titles, options.at_once, log=options.log)


def _rows(
    plan: EvidencePlan,
    shards: ShardSet,
    by_label: Sequence[EvalSplit],
    by_group: Sequence[EvalSplit],
    options: RunOptions,
) -> tuple[list[Row], list[str]]:
    """Return all rows of the table, and notes."""
    columns = list(zip(plan.split_columns, by_label, by_group, strict=True))
    groups = VideoTable.of(shards.videos).units

    def measurements(features: Features, seed: int, split_column: str | None = None) -> list[Measurement]:
        return [
            measure(features, split, split_column=column, seed=seed, probe_seed=options.seed)
            for column, *splits in columns
            if split_column in (None, column)
            for split in splits
        ]

    rows, notes = [], []
    for name, readout in product((*plan.networks, UNTRAINED), READOUTS):
        found: list[Measurement] = []
        # Initial weights depend on the seed only: one untrained network serves all splits.
        untrained = name == UNTRAINED
        for run in _untrained_sources(plan) if untrained else plan.pretraining_runs:
            if untrained or run.network == name:
                features = _embed(plan, run, options.command, readout, untrained=untrained)
                notes += length_notes(features)
                found += measurements(features, run.seed, None if untrained else run.split_column)
        rows.append(Row(name=name, readout=readout, measurements=found, groups=groups))
    for name, describe in BASELINES.items():
        with ProgressDisplay(f"describe {name}") as display:
            features = describe(shards, options.command, display.update)
        rows.append(Row(name=name, measurements=measurements(features, 0), groups=groups))
    return rows, notes


def _untrained_sources(plan: EvidencePlan) -> list[PretrainingRun]:
    """Return one run for each seed, from which to take the initial weights."""
    return [
        run for run in plan.pretraining_runs if (run.network, run.split_column) == (HEADLINE, plan.split_columns[0])
    ]


def _embed(
    plan: EvidencePlan, run: PretrainingRun, command: str, readout: ReadoutName, *, untrained: bool = False
) -> Features:
    """Return the features of a pre-training run, which are kept in its folder."""
    source = FeatureSource(
        source=plan.run_dir(run),
        shards=plan.shards,
        untrained=untrained,
        clips=plan.size.clips,
        readout=readout,
        device=plan.device,
        workers=plan.config(run).data.workers,
    )
    name = f"{run.split_column}, seed {run.seed}, {UNTRAINED if untrained else run.network}"
    with ProgressDisplay(f"embed {name} ({readout})") as display:
        return open_features(source, command, display.update)


def _record(plan: EvidencePlan, data_hash: str, rows: Sequence[Row], options: RunOptions) -> dict[str, Any]:
    headline = rows[0]
    runs = []
    for run in plan.pretraining_runs:
        folder = plan.run_dir(run)
        checkpoint = load_checkpoint(folder)
        found = {"run_dir": str(folder.relative_to(plan.out)), "step": checkpoint.step}
        runs.append({**asdict(run), **found, "sha256": checkpoint.weights_hash})
    provenance = Provenance(
        command=options.command,
        shards=join_paths(plan.shards),
        data_hash=data_hash,
        trained_on=data_hash,
        features=f"backbones with the readouts {', '.join(READOUTS)}; descriptors",
        settings=plan.config(plan.pretraining_runs[0]).as_dict(),
        seed=options.seed,
        clips=plan.size.clips,
    )
    return result_record(
        "evidence",
        provenance,
        size=plan.size_name,
        plan={
            **asdict(plan.size),
            "epochs": plan.epochs,
            "auxiliary_epochs": plan.auxiliary_epochs,
            "overrides": list(plan.overrides),
            "auxiliary_overrides": list(plan.auxiliary_overrides),
        },
        split_columns=list(plan.split_columns),
        runs=runs,
        rows=[row.as_json(options.seed) for row in rows],
        chance=chance(headline),
        comparisons=differences(rows, HEADLINE, seed=options.seed),
        videos={f"by_{target}": len(headline.per_video(target, "R@1")) for target in ("label", "group")},
    )
