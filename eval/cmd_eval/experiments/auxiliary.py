"""Supervised runs over seeds and splits: the effect of motion prediction as an auxiliary loss, and of pre-training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cmd_eval.data.table import VideoTable
from cmd_eval.experiments.jobs import check_run_dir, train_all
from cmd_eval.features.source import unique
from cmd_eval.metrics.paired import Difference, Pair, mean_difference
from cmd_eval.results.files import read_result, write_result
from cmd_eval.results.schema import (
    EVAL_FOLDER,
    Provenance,
    clip_suffixes,
    mean_and_spread,
    result_record,
)
from cmd_eval.tasks.recognition import (
    RecognitionSpec,
    check_test_videos,
    evaluate_recognition,
    labeled_part,
    recognition_file_name,
    recognition_record,
)
from cmd_extract.console.progress import ProgressDisplay
from cmd_extract.console.tables import format_table
from cmd_extract.shard.folders import join_paths, open_folders
from cmd_train.checkpoints.files import FINISHED_NAME, list_checkpoints, load_checkpoint
from cmd_train.config import TrainConfig, build_config, changed_fields, check_finetuning, parse_overrides
from cmd_train.recipes import AUXILIARY_MOTION, check_recipe

ARMS = ("none", "motion")
PRETRAINED = "pretrained"
_ARM_NAMES = {"none": "without motion", "motion": "with motion", PRETRAINED: "pre-trained, without motion"}
_TRAIN_PART = "train"
_SAME_FOR_BOTH = {name: value for name, value in AUXILIARY_MOTION.items() if name != "model.motion_head"}
"""Settings required by motion prediction; runs without it use them, too, so that nothing else differs."""
_IGNORED_FIELDS = ("data.workers",)
_OWN_FIELDS = (
    *("run.seed", "data.split_column", "data.train_part", "data.all_videos", "model.context_head"),
    *AUXILIARY_MOTION,
)
"""Fields that the comparison sets for each run; the user cannot change them."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The runs to compare.

    Attributes:
        shards: folders of the shards.
        out: output folder, with one folder per run.
        recipe: recipe of ``cmd-train finetune``.
        split_columns: splits; each run is trained on the part ``train`` of one of them.
        test_part: part to test on.
        seeds: number of seeds, starting at 0.
        overrides: ``SECTION.FIELD=VALUE`` changes for both sides.
        clips: clips per video in evaluation.
        device: ``auto``, ``cpu`` or ``cuda``.
        pretrained: by split column and seed, a pre-trained run from which another run without motion prediction starts;
            all others start from scratch.
    """

    shards: tuple[Path, ...]
    out: Path
    recipe: str
    split_columns: tuple[str, ...]
    test_part: str = "test"
    seeds: int = 3
    overrides: tuple[str, ...] = ()
    clips: int = 10
    device: str = "auto"
    pretrained: Mapping[tuple[str, int], Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in parse_overrides(self.overrides):
            if name in _OWN_FIELDS:
                raise ValueError(f"{name}: the comparison sets this field for each run; remove it from --set")

    @property
    def jobs(self) -> list[tuple[str, int, str]]:
        """Split, seed and arm of each run."""
        return [
            (column, seed, arm)
            for column in self.split_columns
            for seed in range(self.seeds)
            for arm in (*ARMS, PRETRAINED)
            if arm in ARMS or (column, seed) in self.pretrained
        ]

    def config(self, split_column: str, seed: int, arm: str) -> TrainConfig:
        """Return the configuration of a run, as ``cmd-train`` resolves it."""
        own = {"data.split_column": split_column, "data.train_part": _TRAIN_PART, "run.seed": seed}
        own |= {"model.motion_head": arm == "motion"}
        return build_config(self.recipe, {**_SAME_FOR_BOTH, **parse_overrides(self.overrides), **own})

    def run_dir(self, split_column: str, seed: int, arm: str) -> Path:
        """Return the folder of a run."""
        return self.out / f"{split_column}-seed{seed}-{arm}"

    def arguments(self, split_column: str, seed: int, arm: str) -> list[str]:
        """Return the arguments of ``cmd-train`` for a run."""
        run_dir = self.run_dir(split_column, seed, arm)
        start = str(self.pretrained[split_column, seed]) if arm == PRETRAINED else "scratch"
        arguments = ["finetune", *map(str, self.shards), str(run_dir), "--from", start, "--recipe", self.recipe]
        arguments += ["--split-column", split_column, "--train-part", _TRAIN_PART, "--seed", str(seed)]
        arguments += ["--auxiliary", "motion" if arm == "motion" else "none", "--device", self.device]
        same = [f"{name}={json.dumps(value)}" for name, value in _SAME_FOR_BOTH.items()]
        return arguments + [argument for change in (*same, *self.overrides) for argument in ("--set", change)]


@dataclass(frozen=True, kw_only=True)
class AuxiliaryRun:
    """Result of the comparison.

    Attributes:
        difference: difference in top-1, with its interval.
        pairs: the pairs of runs.
        record: content of the result file.
        result_path: the result file.
    """

    difference: Difference
    pairs: tuple[Pair, ...]
    record: dict[str, Any]
    result_path: Path


def compare_auxiliary(
    comparison: Comparison, *, command: str, log: Callable[[str], None], at_once: int = 1
) -> AuxiliaryRun:
    """Train and test the runs that are missing, and write ``eval/auxiliary.json`` in the output folder.

    Finished runs are kept and interrupted ones continue; more seeds or splits only add runs.

    Args:
        comparison: the runs to compare.
        command: command line, recorded.
        log: prints a line.
        at_once: number of training runs in parallel.

    Raises:
        ValueError: invalid settings, shards or splits.
        RuntimeError: a run failed.
        KeyboardInterrupt: interrupted; unfinished runs have been saved.
    """
    data_hash = check_comparison(comparison)
    for note in leakage_notes(comparison):
        log(note)
    known = {job: _known_result(comparison, data_hash, *job) for job in comparison.jobs}
    missing = {}
    for number, (job, result) in enumerate(known.items(), 1):
        column, seed, arm = job
        title = f"run {number} of {len(known)}: {column}, seed {seed}, {_ARM_NAMES[arm]}"
        if result is None:
            missing[comparison.run_dir(*job).name] = (title, job)
        else:
            log(f"{title} (already done)")
    results = {job: result for job, result in known.items() if result is not None}

    def test(name: str) -> None:
        job = missing[name][1]
        results[job] = _test(comparison, *job, command)

    train_all(
        {name: comparison.arguments(*job) for name, (_, job) in missing.items()},
        {name: title for name, (title, _) in missing.items()},
        at_once,
        log=log,
        on_finish=test,
    )
    pairs = _pairs(results, "motion")
    difference = mean_difference(pairs)
    record = _record(comparison, data_hash, command, {job: results[job] for job in comparison.jobs}, difference)
    path = comparison.out / EVAL_FOLDER / "auxiliary.json"
    write_result(path, record)
    return AuxiliaryRun(difference=difference, pairs=pairs, record=record, result_path=path)


def check_comparison(comparison: Comparison) -> str:
    """Check everything that can be checked before training, for both sides.

    Returns:
        The data hash of the shards.

    Raises:
        ValueError: invalid settings, shards, splits or run folders, or a video on both sides of a split.
    """
    check_recipe(comparison.recipe, finetune=True)
    for arm in ARMS:
        check_finetuning(comparison.config(comparison.split_columns[0], 0, arm))
    leakage_notes(comparison)
    data_hash = open_folders(comparison.shards).data_hash
    for job in comparison.jobs:
        check_run_dir(comparison.run_dir(*job), comparison.config(*job), data_hash)
    return data_hash


def leakage_notes(comparison: Comparison) -> list[str]:
    """Return warnings about groups that are in both parts of a split.

    Raises:
        ValueError: a split or part does not exist, or a video or its file is in both parts of a split.
    """
    shards = open_folders(comparison.shards)
    videos, notes = VideoTable.of(shards.videos), []
    for column in comparison.split_columns:
        labeled_part(videos, column, _TRAIN_PART)
        provenance = Provenance(
            command="",
            shards=join_paths(comparison.shards),
            data_hash=shards.data_hash,
            trained_on=shards.data_hash,
            features="",
            settings=comparison.config(column, 0, ARMS[0]).as_dict(),
        )
        notes += check_test_videos(videos, labeled_part(videos, column, comparison.test_part), provenance)
    return unique(notes)


def _known_result(comparison: Comparison, data_hash: str, column: str, seed: int, arm: str) -> dict[str, Any] | None:
    """Return the result of a run that was finished and tested with the same settings; None if there is none."""
    run_dir = comparison.run_dir(column, seed, arm)
    name = recognition_file_name(column, comparison.test_part, clip_suffixes(comparison.clips))
    path = run_dir / EVAL_FOLDER / name
    if not (path.is_file() and (run_dir / FINISHED_NAME).is_file() and list_checkpoints(run_dir)):
        return None
    record = read_result(path, "recognition")
    last = load_checkpoint(run_dir)
    provenance, (split,) = record["provenance"], record["splits"]
    changed = changed_fields(provenance["settings"], comparison.config(column, seed, arm).as_dict())
    same = not [change for change in changed if not change.startswith(_IGNORED_FIELDS)]
    same = same and (provenance["data_hash"], provenance["trained_on"]) == (data_hash, data_hash)
    same = same and (provenance["step"], provenance["checkpoint_sha256"]) == (last.step, last.weights_hash)
    same = same and (split["test_part"], provenance["clips"]) == (comparison.test_part, comparison.clips)
    return record if same else None


def _test(comparison: Comparison, column: str, seed: int, arm: str, command: str) -> dict[str, Any]:
    test = RecognitionSpec(
        shards=comparison.shards,
        split_column=column,
        test_part=comparison.test_part,
        clips=comparison.clips,
        device=comparison.device,
        workers=comparison.config(column, seed, arm).data.workers,
    )
    with ProgressDisplay("classify") as display:
        run = evaluate_recognition(
            comparison.run_dir(column, seed, arm), test, command=command, progress=display.update
        )
    record = recognition_record([run])
    write_result(run.result_path, record)
    return record


def _pairs(results: Mapping[tuple[str, int, str], Mapping[str, Any]], arm: str) -> tuple[Pair, ...]:
    """Return the pairs of a run of an arm and the one from scratch without motion prediction."""
    pairs = []
    for column, seed in (job[:2] for job in results if job[2] == arm):
        plain, changed = (results[column, seed, one]["splits"][0]["videos"] for one in ("none", arm))
        pairs.append(
            Pair(
                split_column=column,
                seed=seed,
                videos=tuple(row["video"] for row in plain),
                groups=tuple(row["group"] for row in plain),
                plain_N=np.array([row["top1"] for row in plain]),
                changed_N=np.array([row["top1"] for row in changed]),
            )
        )
    return tuple(pairs)


def _record(
    comparison: Comparison,
    data_hash: str,
    command: str,
    results: Mapping[tuple[str, int, str], Mapping[str, Any]],
    difference: Difference,
) -> dict[str, Any]:
    provenance = Provenance(
        command=command,
        shards=join_paths(comparison.shards),
        data_hash=data_hash,
        trained_on=data_hash,
        features="classifier, softmax averaged over clips",
        settings=comparison.config(comparison.split_columns[0], 0, "none").as_dict(),
        clips=comparison.clips,
    )
    runs = [
        {
            "seed": seed,
            "split_column": column,
            "auxiliary": arm,
            "top1": record["splits"][0]["top1"],
            "run_dir": str(comparison.run_dir(column, seed, arm).resolve()),
            "checkpoint_sha256": record["provenance"]["checkpoint_sha256"],
        }
        for (column, seed, arm), record in results.items()
    ]
    arms = [arm for arm in _ARM_NAMES if any(run["auxiliary"] == arm for run in runs)]
    mean = {arm: mean_and_spread([run["top1"]["value"] for run in runs if run["auxiliary"] == arm]) for arm in arms}
    pretraining = None
    if pairs := _pairs(results, PRETRAINED):
        gain = mean_difference(pairs)
        pretraining = {"difference": _interval(gain), "pairs": gain.pairs}
    return result_record(
        "auxiliary",
        provenance,
        recipe=comparison.recipe,
        overrides=list(comparison.overrides),
        test_part=comparison.test_part,
        runs=runs,
        mean=mean,
        difference=_interval(difference),
        standard_errors={"runs": difference.error_of_runs, "videos": difference.error_of_videos},
        pairs=difference.pairs,
        pretraining=pretraining,
        notes=unique(
            [*(note for result in results.values() for note in result["notes"]), *difference_notes(difference)]
        ),
    )


def _interval(difference: Difference) -> dict[str, float]:
    return {"value": difference.value, "low": difference.low, "high": difference.high}


def difference_notes(difference: Difference) -> list[str]:
    """Return notes on what the interval covers."""
    if difference.pairs == 1:
        return ["one pair of runs: the interval covers the choice of test videos only, not the seed"]
    if difference.splits == 1:
        return ["one split: the interval covers other seeds and test videos, not other splits"]
    return [
        f"{difference.splits} splits: the seeds of a split share its videos, so only more splits, not more seeds, "
        "narrow the interval substantially"
    ]


def auxiliary_table(pairs: Sequence[Pair]) -> str:
    """Format top-1 of each pair as a text table."""
    rows = [
        [
            pair.split_column,
            str(pair.seed),
            f"{100 * pair.plain_N.mean():.1f}",
            f"{100 * pair.changed_N.mean():.1f}",
            f"{100 * pair.difference_per_video.mean():+.1f}",
        ]
        for pair in pairs
    ]
    return format_table(["top-1 (%), split", "seed", "without motion", "with motion", "difference"], rows)
