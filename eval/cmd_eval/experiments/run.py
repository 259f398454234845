"""Tries the paper's claims on labelled videos: trains what is missing, evaluates all of it, writes one result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cmd_eval.data.splits import Pairing, pairing_notes
from cmd_eval.data.table import VideoTable
from cmd_eval.experiments.auxiliary import check_comparison, compare_auxiliary
from cmd_eval.experiments.decoupling import HEADS
from cmd_eval.experiments.eta import RunClock
from cmd_eval.experiments.evidence import Answer, Row, ask, chance, differences
from cmd_eval.experiments.jobs import run_cmd_train, run_side_by_side
from cmd_eval.experiments.plan import HEADLINE, EvidencePlan, Pretraining, is_finished, pairings, weights_hash
from cmd_eval.features import color_descriptor, motion_descriptor
from cmd_eval.features.source import FeatureSource, length_notes, open_features, unique
from cmd_eval.features.store import COLOR_HISTOGRAM, MOTION_GRIDS, Features
from cmd_eval.results.schema import EVAL_FOLDER, Provenance, read_result, result_record, write_result
from cmd_extract.shard.reader import ShardSet

UNTRAINED = "untrained"
BASELINES = {MOTION_GRIDS: motion_descriptor.describe_videos, COLOR_HISTOGRAM: color_descriptor.describe_videos}

_SEEN = "by group all videos ask, also those that a network was pre-trained on (without labels)"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a run says, and to whom.

    Attributes:
        command: the command line; recorded.
        say: prints a line for the user.
        progress: makes a function that is called with (videos done, all videos) of the work so named.
        at_once: pre-trainings at the same time.
    """

    command: str
    say: Callable[[str], None]
    progress: Callable[[str], Progress]
    at_once: int = 1


@dataclass(frozen=True, kw_only=True)
class EvidenceRun:
    """What the command gives.

    Attributes:
        record: everything for the result file.
        target: the result file.
    """

    record: dict[str, Any]
    target: Path


def run_evidence(
    plan: EvidencePlan, around: Surroundings, *, speed: Sequence[Mapping[str, Any]] | None = None, seed: int = 0
) -> EvidenceRun:
    """Trains what has not been trained, evaluates, and writes ``eval/evidence.json`` below the plan's folder.

    Run again, finished trainings are kept and an interrupted one continues. The result is first written when the first
    claim is measured, and again when the supervised trainings are done.

    Args:
        plan: what is to be trained.
        around: what is said and recorded.
        speed: entries of the benchmarks, for the third claim; None keeps what an earlier start was given.
        seed: decides the draws of the intervals.

    Raises:
        ValueError: videos without labels or groups, splits or settings that do not fit, a folder of other runs, or a
            result of an earlier start that cannot be read.
        RuntimeError: a training failed.
        KeyboardInterrupt: interrupted; what is under way has been saved.
    """
    shards = ShardSet(plan.shards)
    videos = VideoTable.of(shards.videos)
    by_label, by_group = pairings(videos, plan.split_columns)
    comparison = plan.comparison
    if comparison is not None:
        check_comparison(comparison)
    target = plan.out / EVAL_FOLDER / "evidence.json"
    if speed is None and target.is_file():  # before hours of training: the file may not be readable
        speed = read_result(target, "evidence")["speed"]
    _train(plan, shards.data_hash, around)
    rows, notes = _rows(plan, shards, by_label, by_group, around, seed)
    record = _record(plan, shards.data_hash, rows, around.command, seed)
    told = [note for pairing in (*by_label, by_group) for note in pairing_notes(videos, pairing)]
    record |= {"notes": unique([*told, *notes, _SEEN]), "speed": speed, "auxiliary": None}
    write_result(target, record)
    if comparison is not None:
        around.say(f"retrieval is measured, see {target}; now the supervised trainings")
        found = compare_auxiliary(
            comparison,
            command=around.command,
            say=lambda text: around.say(f"supervised {text}"),
            progress=around.progress("classify"),
        )
        write_result(target.with_name("auxiliary.json"), found.record)
        record["auxiliary"] = {name: found.record[name] for name in ("difference", "mean", "pairs", "notes")}
        write_result(target, record)
    return EvidenceRun(record=record, target=target)


def _train(plan: EvidencePlan, data_hash: str, around: Surroundings) -> None:
    runs = plan.pretrainings
    for run in runs:
        plan.config(run)
    # All are looked at before the first is started, so that a folder of something else is told at once.
    done = {run: is_finished(plan, run, data_hash) for run in runs}
    clock = RunClock(len(runs) - sum(done.values()))
    words = {}
    for number, run in enumerate(runs, 1):
        what = f"pre-training run {number} of {len(runs)}: {run.split_column}, seed {run.seed}, {run.heads}"
        words[plan.run_dir(run).name] = what
        if done[run]:
            around.say(f"{what} (done before)")
    waiting = {plan.run_dir(run).name: plan.arguments(run) for run in runs if not done[run]}

    def begun(name: str) -> None:
        around.say(f"{words[name]}{clock.words()}")

    if around.at_once > 1:
        run_side_by_side(waiting, around.at_once, say=around.say, begun=begun, made=lambda _: clock.made())
        return
    for name, arguments in waiting.items():
        begun(name)
        run_cmd_train(arguments)
        clock.made()


def _rows(
    plan: EvidencePlan,
    shards: ShardSet,
    by_label: Sequence[Pairing],
    by_group: Pairing,
    around: Surroundings,
    seed: int,
) -> tuple[list[Row], list[str]]:
    """All rows of the table, and what to know of them."""

    def answers(features: Features, columns: Sequence[str], of_seed: int) -> list[Answer]:
        asked = [(pairing, pairing.split_column) for pairing in by_label if pairing.split_column in columns]
        return [
            ask(features, pairing, split_column=column, seed=of_seed, probe_seed=seed)
            for pairing, column in (*asked, (by_group, columns[0]))
        ]

    rows, notes = [], []
    for heads in HEADS:
        found: list[Answer] = []
        for run in plan.pretrainings:
            if run.heads == heads:
                features = _embedded(plan, run, around)
                notes += length_notes(features)
                found += answers(features, [run.split_column], run.seed)
        rows.append(Row(name=heads, answers=found))
    found = []
    for of_seed in range(plan.size.seeds):
        # The weights before training follow from the seed alone: one network serves all splits.
        first = Pretraining(heads=HEADLINE, split_column=plan.split_columns[0], seed=of_seed)
        found += answers(_embedded(plan, first, around, untrained=True), plan.split_columns, of_seed)
    rows.append(Row(name=UNTRAINED, answers=found))
    for name, describe in BASELINES.items():
        features = describe(shards, around.command, around.progress(f"describe {name}:"))
        rows.append(Row(name=name, answers=answers(features, plan.split_columns, 0)))
    return rows, notes


def _embedded(plan: EvidencePlan, run: Pretraining, around: Surroundings, *, untrained: bool = False) -> Features:
    """The features of a pre-training, kept in its folder."""
    source = FeatureSource(
        source=plan.run_dir(run),
        shards=plan.shards,
        untrained=untrained,
        clips=plan.size.clips,
        device=plan.device,
        workers=plan.config(run).data.workers,
    )
    name = f"{run.split_column}, seed {run.seed}, {UNTRAINED if untrained else run.heads}"
    return open_features(source, around.command, around.progress(f"embed {name}:"))


def _record(plan: EvidencePlan, data_hash: str, rows: Sequence[Row], command: str, seed: int) -> dict[str, Any]:
    headline, others = rows[0], rows[1:]
    runs = []
    for run in plan.pretrainings:
        digest, step = weights_hash(plan, run)
        runs.append(
            {**asdict(run), "run_dir": str(plan.run_dir(run).relative_to(plan.out)), "step": step, "sha256": digest}
        )
    provenance = Provenance(
        command=command,
        shards=str(plan.shards),
        data_hash=data_hash,
        trained_on=data_hash,
        features="backbones, pooled; descriptors",
        settings=plan.config(plan.pretrainings[0]).as_dict(),
        seed=seed,
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
        rows=[row.as_json(seed) for row in rows],
        chance=chance(headline),
        comparisons=differences(headline, others, seed=seed),
        videos={f"by_{by}": len(headline.per_video(by, "R@1")) for by in ("label", "group")},
    )
