"""The auxiliary task, measured: trains with and without motion prediction, over seeds and splits, and compares."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmd_eval.data.table import VideoTable
from cmd_eval.experiments.eta import RunClock
from cmd_eval.experiments.jobs import check_run_dir, run_cmd_train
from cmd_eval.features.source import clip_words, unique
from cmd_eval.metrics.paired import Difference, Pair, mean_difference
from cmd_eval.results.schema import EVAL_FOLDER, Provenance, mean_and_spread, read_result, result_record, write_result
from cmd_eval.tasks.recognition import (
    RecognitionTest,
    check_tested,
    file_name,
    labelled_part,
    recognise,
    recognition_record,
)
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import FINISHED_NAME, list_checkpoints, load_checkpoint
from cmd_train.config import TrainConfig, build_config, changed_fields, check_finetuning, parse_overrides
from cmd_train.recipes import AUXILIARY_MOTION, check_recipe

ARMS = ("none", "motion")
_TRAIN_PART = "train"
_SAME_FOR_BOTH = {name: value for name, value in AUXILIARY_MOTION.items() if name != "model.motion_head"}
"""What motion prediction asks of a recipe; the run without it gets the same, so that nothing else differs."""
_FREE = ("data.workers",)
_DECIDED = ("run.seed", "data.split_column", "data.part", "model.context_head", *AUXILIARY_MOTION)
"""Fields that the comparison gives each run itself."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What to run.

    Attributes:
        shards: folder of shards.
        out: folder for everything; runs lie in it, one folder each.
        recipe: named settings of ``cmd-train finetune``.
        split_columns: splits to run on; each trains on its part ``train``.
        test_part: the part to test on.
        seeds: how many seeds, from 0.
        overrides: ``SECTION.FIELD=VALUE`` for both sides.
        clips: clips a video at test.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    shards: Path
    out: Path
    recipe: str
    split_columns: tuple[str, ...]
    test_part: str = "test"
    seeds: int = 3
    overrides: tuple[str, ...] = ()
    clips: int = 10
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in parse_overrides(self.overrides):
            if name in _DECIDED:
                raise ValueError(f"{name}: decided by the comparison itself, for every run; leave it away")

    @property
    def jobs(self) -> list[tuple[str, int, str]]:
        """Split, seed and arm of every run."""
        return [(c, s, arm) for c in self.split_columns for s in range(self.seeds) for arm in ARMS]

    def config(self, split_column: str, seed: int, arm: str) -> TrainConfig:
        """The settings of one run, as ``cmd-train`` resolves them."""
        own = {"data.split_column": split_column, "data.part": _TRAIN_PART, "run.seed": seed}
        own |= {"model.motion_head": arm == "motion"}
        return build_config(self.recipe, {**_SAME_FOR_BOTH, **parse_overrides(self.overrides), **own})

    def run_dir(self, split_column: str, seed: int, arm: str) -> Path:
        """Where one run lies."""
        return self.out / f"{split_column}-seed{seed}-{arm}"

    def arguments(self, split_column: str, seed: int, arm: str) -> list[str]:
        """The words of one run for ``cmd-train``."""
        same = [f"{name}={json.dumps(value)}" for name, value in _SAME_FOR_BOTH.items()]
        words = ["finetune", str(self.shards), str(self.run_dir(split_column, seed, arm)), "--from", "scratch"]
        words += ["--recipe", self.recipe, "--split-column", split_column, "--part", _TRAIN_PART, "--seed", str(seed)]
        words += ["--auxiliary", arm, "--device", self.device]
        return words + [word for pair in (*same, *self.overrides) for word in ("--set", pair)]


@dataclass(frozen=True, kw_only=True)
class AuxiliaryRun:
    """What the comparison gives.

    Attributes:
        difference: of top-1, with its interval.
        pairs: what it is of.
        record: everything for the result file.
        target: the result file.
    """

    difference: Difference
    pairs: tuple[Pair, ...]
    record: dict[str, Any]
    target: Path


def compare_auxiliary(
    comparison: Comparison, *, command: str, say: Callable[[str], None], progress: Callable[[int, int], None]
) -> AuxiliaryRun:
    """Runs what has not been run, tests it, and writes ``eval/auxiliary.json`` below the comparison's folder.

    Args:
        comparison: what to run. Run again, finished runs are kept and an interrupted one continues; more seeds or
            splits only add runs.
        command: the command line; recorded.
        say: prints a line for the user.
        progress: called with (videos tested, all videos) of each test.

    Raises:
        ValueError: settings, shards or splits that do not fit.
        RuntimeError: a training failed.
        KeyboardInterrupt: interrupted; what is under way has been saved.
    """
    data_hash = check_comparison(comparison)
    for note in leakage_notes(comparison):
        say(note)
    known = {job: _known_result(comparison, data_hash, *job) for job in comparison.jobs}
    clock = RunClock(sum(result is None for result in known.values()))
    results = {}
    for number, (column, seed, arm) in enumerate(known, 1):
        what = f"run {number} of {len(known)}: {column}, seed {seed}, {'with' if arm == 'motion' else 'without'} motion"
        result = known[column, seed, arm]
        say(f"{what} (done before)" if result else f"{what}{clock.words()}")
        if result is None:
            result = _run(comparison, column, seed, arm, command, progress)
            clock.made()
        results[column, seed, arm] = result
    pairs = tuple(
        _pair(column, seed, results[column, seed, "none"], results[column, seed, "motion"])
        for column in comparison.split_columns
        for seed in range(comparison.seeds)
    )
    difference = mean_difference(pairs)
    record = _record(comparison, data_hash, command, results, difference)
    target = comparison.out / EVAL_FOLDER / "auxiliary.json"
    write_result(target, record)
    return AuxiliaryRun(difference=difference, pairs=pairs, record=record, target=target)


def check_comparison(comparison: Comparison) -> str:
    """Refuses what no run could do, of either side; returns the data's hash.

    Raises:
        ValueError: settings, shards, splits or folders of runs that do not fit, or a video on both sides of a split.
    """
    check_recipe(comparison.recipe, finetune=True)
    for arm in ARMS:
        check_finetuning(comparison.config(comparison.split_columns[0], 0, arm))
    leakage_notes(comparison)
    data_hash = ShardSet(comparison.shards).data_hash
    for job in comparison.jobs:
        check_run_dir(comparison.run_dir(*job), comparison.config(*job), data_hash)
    return data_hash


def leakage_notes(comparison: Comparison) -> list[str]:
    """What to know of the splits before anything is trained: groups that are in both parts.

    Raises:
        ValueError: a split or part does not exist, or a video or its file is in both of a split's parts.
    """
    shards = ShardSet(comparison.shards)
    videos, notes = VideoTable.of(shards.videos), []
    for column in comparison.split_columns:
        labelled_part(videos, column, _TRAIN_PART)
        provenance = Provenance(
            command="",
            shards=str(comparison.shards),
            data_hash=shards.data_hash,
            trained_on=shards.data_hash,
            features="",
            settings=comparison.config(column, 0, ARMS[0]).as_dict(),
        )
        notes += check_tested(videos, labelled_part(videos, column, comparison.test_part), provenance)
    return unique(notes)


def _known_result(comparison: Comparison, data_hash: str, column: str, seed: int, arm: str) -> dict[str, Any] | None:
    """The result of a run that was finished and tested before in the very same way; None if there is none."""
    run_dir = comparison.run_dir(column, seed, arm)
    name = file_name(column, comparison.test_part, clip_words(comparison.clips))
    path = run_dir / EVAL_FOLDER / name
    if not (path.is_file() and (run_dir / FINISHED_NAME).is_file() and list_checkpoints(run_dir)):
        return None
    record = read_result(path, "recognition")
    last = load_checkpoint(run_dir)
    provenance, (split,) = record["provenance"], record["splits"]
    changed = changed_fields(provenance["settings"], comparison.config(column, seed, arm).as_dict())
    same = not [change for change in changed if not change.startswith(_FREE)]
    same = same and (provenance["data_hash"], provenance["trained_on"]) == (data_hash, data_hash)
    same = same and (provenance["step"], provenance["checkpoint_sha256"]) == (last.step, last.weights_hash)
    same = same and (split["test_part"], provenance["clips"]) == (comparison.test_part, comparison.clips)
    return record if same else None


def _run(
    comparison: Comparison, column: str, seed: int, arm: str, command: str, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    run_cmd_train(comparison.arguments(column, seed, arm))
    test = RecognitionTest(
        shards=comparison.shards,
        split_column=column,
        part=comparison.test_part,
        clips=comparison.clips,
        device=comparison.device,
        workers=comparison.config(column, seed, arm).data.workers,
    )
    run = recognise(comparison.run_dir(column, seed, arm), test, command=command, progress=progress)
    record = recognition_record([run])
    write_result(run.target, record)
    return record


def _pair(column: str, seed: int, plain: Mapping[str, Any], motion: Mapping[str, Any]) -> Pair:
    plain_videos, motion_videos = (record["splits"][0]["videos"] for record in (plain, motion))
    return Pair(
        split_column=column,
        seed=seed,
        videos=tuple(row["video"] for row in plain_videos),
        plain_N=np.array([row["top1"] for row in plain_videos]),
        motion_N=np.array([row["top1"] for row in motion_videos]),
    )


def _record(
    comparison: Comparison,
    data_hash: str,
    command: str,
    results: Mapping[tuple[str, int, str], Mapping[str, Any]],
    difference: Difference,
) -> dict[str, Any]:
    provenance = Provenance(
        command=command,
        shards=str(comparison.shards.resolve()),
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
    mean = {arm: mean_and_spread([run["top1"]["value"] for run in runs if run["auxiliary"] == arm]) for arm in ARMS}
    told = asdict(difference)
    return result_record(
        "auxiliary",
        provenance,
        recipe=comparison.recipe,
        overrides=list(comparison.overrides),
        test_part=comparison.test_part,
        runs=runs,
        mean=mean,
        difference={name: told[name] for name in ("value", "low", "high")},
        standard_errors={"runs": difference.error_of_runs, "videos": difference.error_of_videos},
        pairs=difference.pairs,
        notes=unique(
            [*(note for result in results.values() for note in result["notes"]), *difference_notes(difference)]
        ),
    )


def difference_notes(difference: Difference) -> list[str]:
    """What to know of the interval."""
    if difference.pairs == 1:
        return ["one pair of runs: the interval covers the choice of test videos only, not that of the seed"]
    if difference.splits == 1:
        return ["one split: the interval holds for other seeds and test videos, not for other splits"]
    return [
        f"{difference.splits} splits: the seeds of a split share its videos, so that only more splits, not more seeds, "
        "make the interval much narrower"
    ]


def table(pairs: Sequence[Pair]) -> str:
    """One line a pair, in percent."""
    lines = ["split".ljust(16) + "seed".rjust(6) + "without".rjust(10) + "with".rjust(10) + "difference".rjust(14)]
    for pair in pairs:
        plain, motion, both = pair.plain_N.mean(), pair.motion_N.mean(), pair.difference_per_video.mean()
        lines.append(f"{pair.split_column:16}{pair.seed:6}{plain:10.1%}{motion:10.1%}{100 * both:+7.1f} points")
    return "\n".join(lines)
