"""Plan of ``cmd-eval evidence``: its sizes, its training runs with their settings and folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmd_eval.data.splits import EvalSplit, leave_one_out_split, part_split
from cmd_eval.data.table import VideoTable
from cmd_eval.experiments.auxiliary import Comparison
from cmd_eval.experiments.jobs import check_run_dir
from cmd_eval.features.readout import ReadoutName
from cmd_extract.shard.reader import ShardSet
from cmd_extract.system.validation import require_range
from cmd_train.checkpoints.files import FINISHED_NAME
from cmd_train.config import TrainConfig, build_config, parse_overrides
from cmd_train.data.epoch_sampler import EpochSampler
from cmd_train.data.selection import select_videos
from cmd_train.recipes import check_recipe

TRAIN_PART, TEST_PART = "train", "test"
READOUTS: tuple[ReadoutName, ...] = ("mean", "ordered", "grid-ordered")
"""Readouts that are evaluated: the published one, and two that keep the order of the clips."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """Pre-training of a row of the table.

    Attributes:
        folder: its part of the names of run folders.
        context, motion: whether the network has the context head and the motion head.
        changes: ``SECTION.FIELD=VALUE`` changes to the recipe.
    """

    folder: str
    context: bool
    motion: bool
    changes: tuple[str, ...] = ()


_PAPER = build_config("ucf101")
HEADLINE, CONTRASTIVE = "both heads", "motion head only, contrastive"
NETWORKS: Mapping[str, Network] = {
    HEADLINE: Network(folder="both", context=True, motion=True),
    "context head only": Network(folder="context", context=True, motion=False),
    "motion head only": Network(folder="motion", context=False, motion=True),
    # The paper's objective with its defaults, and everything else as in the recipe.
    CONTRASTIVE: Network(
        folder="contrastive",
        context=False,
        motion=True,
        changes=(
            f"loss.motion_target={_PAPER.loss.motion_target}",
            f"sampling.motion_window={_PAPER.sampling.motion_window}",
            f"sampling.temporal_negatives={_PAPER.sampling.temporal_negatives}",
        ),
    ),
}
"""Pre-trained networks by the name of their row."""

_OWN_FIELDS = (
    *("data.split_column", "data.train_part", "data.all_videos", "run.seed", "optim.epochs"),
    *("model.context_head", "model.motion_head"),
)
"""Fields that the command sets for each run; the user cannot change them."""


@dataclass(frozen=True, kw_only=True)
class EvidenceSize:
    """Number, length and recipes of the runs.

    Attributes:
        recipe: recipe of the pre-training runs.
        changes: ``SECTION.FIELD=VALUE`` changes to that recipe.
        steps: optimizer steps of each pre-training run, rounded to whole epochs.
        seeds: pre-training runs with both heads per split, with seeds from 0; also the number of untrained networks.
        single_seeds: pre-training runs of each other network per split; 0 leaves them out.
        auxiliary_recipe: recipe of the supervised runs.
        auxiliary_changes: changes to that recipe.
        auxiliary_steps: optimizer steps of each supervised run.
        auxiliary_seeds: supervised runs of each kind per split; 0 leaves the second claim out.
        clips: clips per video in evaluation.
    """

    recipe: str
    changes: tuple[str, ...] = ()
    steps: int
    seeds: int
    single_seeds: int
    auxiliary_recipe: str
    auxiliary_changes: tuple[str, ...] = ()
    auxiliary_steps: int
    auxiliary_seeds: int
    clips: int = 10

    def __post_init__(self) -> None:
        require_range(self, "steps", "seeds", "auxiliary_steps", "clips", ge=1)
        require_range(self, "single_seeds", "auxiliary_seeds", ge=0)
        if self.single_seeds > self.seeds:
            raise ValueError(
                f"single_seeds: {self.single_seeds} is more than seeds = {self.seeds}; each other network is compared "
                "with one that has both heads"
            )


_ON_A_GPU = ("data.workers=8", "run.precision=auto", "run.checkpoint_epochs=50")

SIZES: Mapping[str, EvidenceSize] = {
    # For two cores; see eval/RESULTS.md for the time it takes.
    "small": EvidenceSize(
        recipe="gestures",
        steps=600,
        seeds=3,
        single_seeds=1,
        auxiliary_recipe="finetune-gestures",
        auxiliary_steps=500,
        auxiliary_seeds=1,
    ),
    # For a GPU: the paper's network and batch size at 112 pixels, a stride for short clips, three seeds per row.
    "full": EvidenceSize(
        recipe="ucf101-directions",
        changes=("sampling.stride=2", "data.samples_per_video=4", *_ON_A_GPU),
        steps=4000,
        seeds=3,
        single_seeds=3,
        auxiliary_recipe="finetune-gestures",
        auxiliary_changes=(
            "model.backbone=r2plus1d_26",
            "model.width=64",
            "model.encoder_width=64",
            "model.crop_size=112",
            "model.embedding_dim=512",
            "model.head_hidden=2048",
            "model.predictor_width=512",
            "model.predictor_heads=8",
            "model.predictor_ff=512",
            "model.encoder_layers=2",
            "model.decoder_layers=4",
            *_ON_A_GPU,
        ),
        auxiliary_steps=4000,
        auxiliary_seeds=3,
    ),
}


@dataclass(frozen=True, kw_only=True)
class PretrainingRun:
    """A pre-training run.

    Attributes:
        network: one of ``NETWORKS``.
        split_column: split whose part ``train`` it is trained on.
        seed: random seed of the run.
    """

    network: str
    split_column: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class EvidencePlan:
    """All runs of the command.

    Attributes:
        shards: folders of the shards.
        out: output folder.
        size_name: name of the size.
        size: number, length and recipes of the runs.
        split_columns: splits with parts ``train`` and ``test``; scenes should not be in both.
        epochs, auxiliary_epochs: length of each pre-training run and of each supervised run.
        overrides: ``SECTION.FIELD=VALUE`` changes to the pre-training runs, on top of those of the size.
        auxiliary_overrides: the same for the supervised runs.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    shards: tuple[Path, ...]
    out: Path
    size_name: str
    size: EvidenceSize
    split_columns: tuple[str, ...]
    epochs: int
    auxiliary_epochs: int
    overrides: tuple[str, ...] = ()
    auxiliary_overrides: tuple[str, ...] = ()
    device: str = "auto"

    @property
    def networks(self) -> list[str]:
        """Rows of pre-trained networks, the one with both heads first."""
        contrastive = self._recipe_config.loss.motion_target == _PAPER.loss.motion_target
        return [name for name in NETWORKS if self.seeds_of(name) > 0 and not (name == CONTRASTIVE and contrastive)]

    @property
    def pretraining_runs(self) -> list[PretrainingRun]:
        """All pre-training runs, seed by seed, so that an early stop leaves complete tables."""
        networks = self.networks
        return [
            PretrainingRun(network=name, split_column=column, seed=seed)
            for seed in range(self.size.seeds)
            for column in self.split_columns
            for name in networks
            if seed < self.seeds_of(name)
        ]

    @property
    def _recipe_config(self) -> TrainConfig:
        return build_config(self.size.recipe, parse_overrides((*self.size.changes, *self.overrides)))

    def seeds_of(self, network: str) -> int:
        """Return the number of seeds of a row."""
        return self.size.seeds if network == HEADLINE else self.size.single_seeds

    def run_dir(self, run: PretrainingRun) -> Path:
        """Return the folder of a pre-training run."""
        return self.out / "pretrain" / f"{run.split_column}-seed{run.seed}-{NETWORKS[run.network].folder}"

    def changes_of(self, run: PretrainingRun) -> tuple[str, ...]:
        """Return the ``SECTION.FIELD=VALUE`` changes of a pre-training run to its recipe."""
        network = NETWORKS[run.network]
        context, motion = (str(on).lower() for on in (network.context, network.motion))
        heads = (f"model.context_head={context}", f"model.motion_head={motion}", *network.changes)
        length = _length_changes(self.size.recipe, self.epochs)
        return (*length, *self.size.changes, *self.overrides, *heads, f"optim.epochs={self.epochs}")

    def config(self, run: PretrainingRun) -> TrainConfig:
        """Return the configuration of a pre-training run, as ``cmd-train`` resolves it."""
        own = {"data.split_column": run.split_column, "data.train_part": TRAIN_PART, "run.seed": run.seed}
        return build_config(self.size.recipe, {**own, **parse_overrides(self.changes_of(run))})

    def arguments(self, run: PretrainingRun) -> list[str]:
        """Return the arguments of ``cmd-train`` for a pre-training run."""
        arguments = ["pretrain", *map(str, self.shards), str(self.run_dir(run)), "--recipe", self.size.recipe]
        arguments += ["--split-column", run.split_column, "--train-part", TRAIN_PART, "--seed", str(run.seed)]
        arguments += ["--device", self.device]
        return arguments + [argument for change in self.changes_of(run) for argument in ("--set", change)]

    @property
    def comparison(self) -> Comparison | None:
        """The supervised runs; None if there are none."""
        if not self.size.auxiliary_seeds:
            return None
        epochs = self.auxiliary_epochs
        length = (*_length_changes(self.size.auxiliary_recipe, epochs), f"optim.epochs={epochs}")
        seeds = range(min(self.size.seeds, self.size.auxiliary_seeds))
        starts = [PretrainingRun(network=HEADLINE, split_column=c, seed=s) for c in self.split_columns for s in seeds]
        return Comparison(
            shards=self.shards,
            out=self.out / "auxiliary",
            recipe=self.size.auxiliary_recipe,
            split_columns=self.split_columns,
            test_part=TEST_PART,
            seeds=self.size.auxiliary_seeds,
            pretrained={(run.split_column, run.seed): self.run_dir(run) for run in starts},
            overrides=(*length, *self.size.auxiliary_changes, *self.auxiliary_overrides),
            clips=self.size.clips,
            device=self.device,
        )


def make_plan(
    shards: ShardSet,
    out: Path,
    size_name: str,
    size: EvidenceSize,
    *,
    split_columns: Sequence[str] = (),
    overrides: tuple[str, ...] = (),
    auxiliary_overrides: tuple[str, ...] = (),
    device: str = "auto",
) -> EvidencePlan:
    """Compute the lengths in epochs and check everything that can be checked before training.

    Args:
        shards: the shards.
        out: output folder.
        size_name, size: number, length and recipes of the runs.
        split_columns: split columns to use; empty for all split columns of the shards.
        overrides, auxiliary_overrides, device: see ``EvidencePlan``.

    Raises:
        ValueError: invalid settings, splits or recipes, or videos without labels or groups.
    """
    found = shards.videos.split_columns
    columns = tuple(dict.fromkeys(split_columns)) or found
    if not columns:
        raise ValueError("the shards have no split column; add one to the manifest, such as split1")
    evidence_splits(VideoTable.of(shards.videos), columns)
    for name, pairs in (("--set", overrides), ("--auxiliary-set", auxiliary_overrides)):
        _refuse_own_fields(name, pairs)
    check_recipe(size.recipe, finetune=False)
    check_recipe(size.auxiliary_recipe, finetune=True)
    given = (*size.changes, *overrides), (*size.auxiliary_changes, *auxiliary_overrides)
    epochs = _epochs(shards, columns, build_config(size.recipe, parse_overrides(given[0])), size.steps)
    supervised = build_config(size.auxiliary_recipe, parse_overrides(given[1]))
    return EvidencePlan(
        shards=shards.folders,
        out=out,
        size_name=size_name,
        size=size,
        split_columns=columns,
        epochs=epochs,
        auxiliary_epochs=_epochs(shards, columns, supervised, size.auxiliary_steps, labeled=True),
        overrides=overrides,
        auxiliary_overrides=auxiliary_overrides,
        device=device,
    )


def evidence_splits(videos: VideoTable, columns: Sequence[str]) -> tuple[list[EvalSplit], list[EvalSplit]]:
    """Return the evaluation by label and by group (leave-one-out), one entry per split each.

    Videos in neither part of a split are not used for it. Inner splits therefore never touch the test videos of the
    split that they divide.

    Raises:
        ValueError: a split or a part does not exist, no video has a label, no two videos share a group, or a file is on
            both sides.
    """
    by_label = [part_split(videos, column, TEST_PART, TRAIN_PART, "label") for column in columns]
    by_group = []
    for column in columns:
        parts = np.concatenate([videos.part(column, part) for part in (TEST_PART, TRAIN_PART)])
        split = leave_one_out_split(videos, "group", rows=np.sort(parts))
        if len({videos.groups[row] for row in split.query}) == len(split.query):
            raise ValueError(f"group: no two videos of {column} share a group, so retrieval by group is impossible")
        by_group.append(split)
    return by_label, by_group


def _refuse_own_fields(option: str, pairs: Sequence[str]) -> None:
    for field in parse_overrides(pairs):
        if field in _OWN_FIELDS:
            hint = "; use --steps and --auxiliary-steps to change the length" if field == "optim.epochs" else ""
            raise ValueError(f"{option} {field}: this command sets it for each run{hint}")


def _length_changes(recipe: str, epochs: int) -> tuple[str, ...]:
    """Scale the warm-up, so that it takes the same share of the run as in the recipe."""
    optim = build_config(recipe).optim
    return (f"optim.warmup_epochs={optim.warmup_epochs * epochs / optim.epochs:.6g}",)


def _epochs(shards: ShardSet, columns: Sequence[str], config: TrainConfig, steps: int, *, labeled: bool = False) -> int:
    """Return the whole number of epochs nearest to ``steps`` on the split with the shortest epochs, at least 1."""
    steps_per_epoch = []
    for column in columns:
        videos = select_videos(shards.videos, column, TRAIN_PART)
        sampler = EpochSampler(
            video_count=sum(bool(entry.label) or not labeled for entry in videos),
            global_batch=config.optim.batch_size,
            epochs=1,
            seed=0,
            samples_per_video=config.data.samples_per_video,
        )
        steps_per_epoch.append(sampler.steps_per_epoch)
    return max(1, round(steps / min(steps_per_epoch)))


def is_finished(plan: EvidencePlan, run: PretrainingRun, data_hash: str) -> bool:
    """Return whether a pre-training run is finished.

    Raises:
        ValueError: its folder contains a run with other shards or settings.
    """
    folder = plan.run_dir(run)
    if not check_run_dir(folder, plan.config(run), data_hash):
        return False
    return (folder / FINISHED_NAME).is_file()
