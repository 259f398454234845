"""Which trainings the evidence is made of, with which settings, and where each one lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmd_eval.data.splits import Pairing, pair_all, pair_parts
from cmd_eval.data.table import VideoTable
from cmd_eval.experiments.auxiliary import Comparison
from cmd_eval.experiments.decoupling import HEADS
from cmd_eval.experiments.evidence_sizes import EvidenceSize
from cmd_eval.experiments.jobs import check_run_dir
from cmd_eval.features.source import kept_features
from cmd_eval.features.store import read_features
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import FINISHED_NAME, load_checkpoint
from cmd_train.config import TrainConfig, build_config, parse_overrides
from cmd_train.data.epoch_sampler import EpochSampler
from cmd_train.data.selection import select_videos
from cmd_train.recipes import check_recipe

HEADLINE = "both heads"
TRAIN_PART, TEST_PART = "train", "test"

_FOLDERS = {"both heads": "both", "context head only": "context", "motion head only": "motion"}
_OWN_FIELDS = (
    *("data.split_column", "data.part", "run.seed", "model.context_head", "model.motion_head"),
    *("optim.epochs",),
)
"""What the command sets for each training; nobody else may."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """One pre-training.

    Attributes:
        heads: one of ``cmd_eval.experiments.decoupling.HEADS``.
        split_column: trains on its part ``train``.
        seed: of the training.
    """

    heads: str
    split_column: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class EvidencePlan:
    """Everything that is to be trained.

    Attributes:
        shards: folder of shards.
        out: folder for everything.
        size_name: what the size is called.
        size: how much is trained.
        split_columns: splits with parts ``train`` and ``test``; scenes should not be in both.
        epochs, auxiliary_epochs: length of each pre-training and each supervised training.
        overrides: ``SECTION.FIELD=VALUE`` of the pre-trainings, beyond those of the size.
        auxiliary_overrides: the same of the supervised trainings.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    shards: Path
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
    def pretrainings(self) -> list[Pretraining]:
        """All pre-trainings: of each seed all splits, so that an early end leaves whole tables."""
        return [
            Pretraining(heads=heads, split_column=column, seed=seed)
            for seed in range(self.size.seeds)
            for column in self.split_columns
            for heads in HEADS
            if seed < self.seeds_of(heads)
        ]

    def seeds_of(self, heads: str) -> int:
        """How many seeds a row has."""
        return self.size.seeds if heads == HEADLINE else self.size.single_seeds

    def run_dir(self, run: Pretraining) -> Path:
        """Where a pre-training lies."""
        return self.out / "pretrain" / f"{run.split_column}-seed{run.seed}-{_FOLDERS[run.heads]}"

    def words(self, run: Pretraining) -> tuple[str, ...]:
        """``SECTION.FIELD=VALUE`` in which a pre-training differs from its recipe."""
        context, motion = (str(on).lower() for on in HEADS[run.heads])
        own = (f"model.context_head={context}", f"model.motion_head={motion}", f"optim.epochs={self.epochs}")
        return (*_length_words(self.size.recipe, self.epochs), *self.size.changes, *self.overrides, *own)

    def config(self, run: Pretraining) -> TrainConfig:
        """The settings of a pre-training, as ``cmd-train`` resolves them."""
        own = {"data.split_column": run.split_column, "data.part": TRAIN_PART, "run.seed": run.seed}
        return build_config(self.size.recipe, {**own, **parse_overrides(self.words(run))})

    def arguments(self, run: Pretraining) -> list[str]:
        """The words of a pre-training for ``cmd-train``."""
        words = ["pretrain", str(self.shards), str(self.run_dir(run)), "--recipe", self.size.recipe]
        words += ["--split-column", run.split_column, "--part", TRAIN_PART, "--seed", str(run.seed)]
        words += ["--device", self.device]
        return words + [word for pair in self.words(run) for word in ("--set", pair)]

    @property
    def comparison(self) -> Comparison | None:
        """The supervised trainings; None if there are to be none."""
        if not self.size.auxiliary_seeds:
            return None
        epochs = self.auxiliary_epochs
        length = (*_length_words(self.size.auxiliary_recipe, epochs), f"optim.epochs={epochs}")
        return Comparison(
            shards=self.shards,
            out=self.out / "auxiliary",
            recipe=self.size.auxiliary_recipe,
            split_columns=self.split_columns,
            test_part=TEST_PART,
            seeds=self.size.auxiliary_seeds,
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
    """Reckons the lengths in epochs, and refuses what no training could do.

    Args:
        shards: the videos.
        out: folder for everything.
        size_name, size: how much is trained.
        split_columns: splits; none stands for all that the shards have.
        overrides, auxiliary_overrides, device: see ``EvidencePlan``.

    Raises:
        ValueError: settings, splits or recipes that do not fit, or videos without labels or groups.
    """
    found = tuple(dict.fromkeys(name for entry in shards.videos for name in entry.splits))
    columns = tuple(dict.fromkeys(split_columns)) or found
    if not columns:
        raise ValueError("split_column: the shards have no split column; name one in the manifest, such as split1")
    pairings(VideoTable.of(shards.videos), columns)
    for name, pairs in (("--set", overrides), ("--auxiliary-set", auxiliary_overrides)):
        _refuse_own_fields(name, pairs)
    check_recipe(size.recipe, finetune=False)
    check_recipe(size.auxiliary_recipe, finetune=True)
    given = (*size.changes, *overrides), (*size.auxiliary_changes, *auxiliary_overrides)
    epochs = _epochs(shards, columns, build_config(size.recipe, parse_overrides(given[0])), size.steps)
    supervised = build_config(size.auxiliary_recipe, parse_overrides(given[1]))
    return EvidencePlan(
        shards=shards.folder,
        out=out,
        size_name=size_name,
        size=size,
        split_columns=columns,
        epochs=epochs,
        auxiliary_epochs=_epochs(shards, columns, supervised, size.auxiliary_steps, labelled=True),
        overrides=overrides,
        auxiliary_overrides=auxiliary_overrides,
        device=device,
    )


def pairings(videos: VideoTable, columns: Sequence[str]) -> tuple[list[Pairing], Pairing]:
    """What is asked: by label a pairing of each split, by group each video against all others.

    Raises:
        ValueError: a split or a part does not exist, no video has a label, no two videos share a group, or a file is on
            both sides.
    """
    by_label = [pair_parts(videos, column, TEST_PART, TRAIN_PART, "label") for column in columns]
    by_group = pair_all(videos, "group")
    if len({videos.groups[row] for row in by_group.query}) == len(by_group.query):
        raise ValueError("group: no two videos share one, so nothing can be found by group")
    return by_label, by_group


def _refuse_own_fields(option: str, pairs: Sequence[str]) -> None:
    for field in parse_overrides(pairs):
        if field in _OWN_FIELDS:
            how = "; --steps and --auxiliary-steps change the length" if field == "optim.epochs" else ""
            raise ValueError(f"{option} {field}: this command sets it for each training{how}")


def _length_words(recipe: str, epochs: int) -> tuple[str, ...]:
    """The warm-up takes the same share of a training as in its recipe, however long the training is."""
    optim = build_config(recipe).optim
    return (f"optim.warmup_epochs={optim.warmup_epochs * epochs / optim.epochs:.6g}",)


def _epochs(
    shards: ShardSet, columns: Sequence[str], config: TrainConfig, steps: int, *, labelled: bool = False
) -> int:
    """Whole epochs nearest to so many steps, on the split with the fewest steps an epoch; at least one."""
    per_epoch = []
    for column in columns:
        videos = select_videos(shards.videos, column, TRAIN_PART)
        sampler = EpochSampler(
            video_count=sum(bool(entry.label) or not labelled for entry in videos),
            global_batch=config.optim.batch_size,
            epochs=1,
            seed=0,
            samples_per_video=config.data.samples_per_video,
        )
        per_epoch.append(sampler.steps_per_epoch)
    return max(1, round(steps / min(per_epoch)))


def is_finished(plan: EvidencePlan, run: Pretraining, data_hash: str) -> bool:
    """Whether a pre-training has been done; one under way is not.

    Raises:
        ValueError: its folder holds a training of other shards or other settings, or features of another number of
            clips.
    """
    folder = plan.run_dir(run)
    if not check_run_dir(folder, plan.config(run), data_hash):
        return False
    for untrained in (False, True):
        path = kept_features(folder, data_hash, untrained=untrained)
        clips = read_features(path).provenance.clips if path.is_file() else plan.size.clips
        if clips != plan.size.clips:
            raise ValueError(f"{path}: of {clips} clips a video, not {plan.size.clips}; give another OUT or --clips")
    return (folder / FINISHED_NAME).is_file()


def weights_hash(plan: EvidencePlan, run: Pretraining) -> tuple[str, int]:
    """SHA-256 of the weights of a finished pre-training, and its steps."""
    checkpoint = load_checkpoint(plan.run_dir(run))
    return checkpoint.weights_hash, checkpoint.step
