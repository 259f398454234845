"""The whole configuration of a training: sections, named recipes, overrides by name.

``--set section.field=value`` changes any field; a knob that two sections share is set in both.
"""

from __future__ import annotations

import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from cmd_train.augment.apply import AugmentConfig
from cmd_train.data.sampling import SamplingConfig
from cmd_train.losses.contrast import DEFAULT_TEMPERATURE
from cmd_train.models.pretrain import ModelConfig
from cmd_train.recipes import RECIPES


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which videos, how often, read by whom.

    Attributes:
        split_column: split column of the manifest; None trains on all videos.
        part: the part of that split to train on.
        samples_per_video: samples that an epoch takes of each video; more than one suits small sets.
        workers: decoding processes; 0 decodes in the training process.
        max_damaged: damaged videos to put up with. Their samples are left out of their batches and reported; one more
            stops the training.
    """

    split_column: str | None = None
    part: str = "train"
    samples_per_video: int = 1
    workers: int = 2
    max_damaged: int = 0

    def __post_init__(self) -> None:
        _require(self.samples_per_video >= 1, f"samples_per_video: {self.samples_per_video} is not at least 1")
        for name in ("workers", "max_damaged"):
            _require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)} is negative")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The two contrastive losses.

    Attributes:
        temperature: divides similarities in both.
        context_weight, motion_weight: weights of the two in the sum; the paper's sum is unweighted.
        symmetric: whether keys also pick their queries.
        motion_own_video: whether a predicted position chooses among the features of its own video only; the paper's
            chooses among those of the whole batch, where it helps to recognise the video by its scene.
        motion_own_place: whether it chooses among the features of its own position only; the paper's chooses among
            those of all, where it helps to tell positions apart, which needs no motion.
        drop_static_px: positions whose motion is slower than this on average (pixels a frame, over their window) ask
            no queries; 0 = none is left out, as in the paper. How many are is logged as ``motion_static_share``.
    """

    temperature: float = DEFAULT_TEMPERATURE
    context_weight: float = 1.0
    motion_weight: float = 1.0
    symmetric: bool = False
    motion_own_video: bool = False
    motion_own_place: bool = False
    drop_static_px: float = 0.0

    def __post_init__(self) -> None:
        _require(self.temperature > 0, f"temperature: {self.temperature} is not positive")
        for name in ("context_weight", "motion_weight", "drop_static_px"):
            _require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)} is negative")


PRECISIONS = ("float32", "tf32", "bf16")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How the run goes.

    Attributes:
        seed: decides weights, order, samples, augmentation and dropout.
        precision: ``float32``; ``tf32``, the same with shorter products on CUDA; ``bf16``, automatic mixed precision.
        compile: whether ``torch.compile`` makes the network faster; where it fails, training goes on without.
        channels_last: whether weights and clips lie with their channels last in memory.
        activation_checkpointing: whether blocks compute their inner activations a second time instead of keeping them:
            less memory, about a third more work, the same numbers.
        log_seconds: about how often a line is printed.
        checkpoint_epochs: epochs between checkpoints.
        checkpoint_minutes: minutes after which one more is made between those; 0 = none is.
        keep_checkpoints: newest checkpoints that stay; the best one stays as well.
        milestone_epochs: every so many epochs one that stays for good; 0 = none does.
        tensorboard: whether metrics are also written for TensorBoard.
        batch_picture: whether the first batch is drawn to ``first_batch.png``.
        knn_epochs: every so many epochs each video looks for its label among the others; 0 = never. Labels are read
            for this only.
    """

    seed: int = 0
    precision: str = "float32"
    compile: bool = False
    channels_last: bool = False
    activation_checkpointing: bool = False
    log_seconds: float = 10.0
    checkpoint_epochs: int = 10
    checkpoint_minutes: float = 30.0
    keep_checkpoints: int = 2
    milestone_epochs: int = 0
    tensorboard: bool = True
    batch_picture: bool = True
    knn_epochs: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**31, f"seed: {self.seed} is not between 0 and 2**31 - 1")
        _require(self.precision in PRECISIONS, f"precision: {self.precision!r} is not one of {', '.join(PRECISIONS)}")
        for name in ("checkpoint_epochs", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)} is not at least 1")
        for name in ("log_seconds", "checkpoint_minutes", "milestone_epochs", "knn_epochs"):
            _require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)} is negative")
        _require(
            not (self.compile and self.activation_checkpointing),
            "activation_checkpointing: not allowed with compile, which decides itself what to compute twice",
        )


OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimisation; the defaults are the paper's for pre-training on UCF101.

    Attributes:
        optimizer: ``sgd`` with Nesterov momentum, the paper's; ``adamw`` gets somewhere in far fewer steps.
        batch_size: samples a step, all ranks together.
        epochs: passes over the training videos.
        lr_per_sample: peak learning rate divided by the batch size.
        warmup_epochs: epochs of linear warm-up, step by step.
        warmup_lr_per_sample: where the warm-up starts.
        final_lr_per_sample: where the cosine ends.
        momentum: Nesterov momentum of SGD, or the decay of AdamW's first moment.
        weight_decay: penalty on all parameters (1e-3 in the released code, 5e-3 in the paper's text).
        clip_norm: largest norm of the gradient; 0 switches clipping off.
        accumulate: parts that each rank's batch is computed in, one after the other, to save memory. Clips are told
            apart within a part only: the optimiser's batch stays, the contrast gets easier.
        fused: whether the update is one kernel instead of one an operation.
    """

    optimizer: str = "sgd"
    batch_size: int = 64
    epochs: int = 120
    lr_per_sample: float = 5e-4
    warmup_epochs: float = 5.0
    warmup_lr_per_sample: float = 5e-6
    final_lr_per_sample: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 1e-3
    clip_norm: float = 15.0
    accumulate: int = 1
    fused: bool = True

    def __post_init__(self) -> None:
        _require(self.optimizer in OPTIMIZERS, f"optimizer: {self.optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
        # One clip alone has nothing to be told apart from, and BatchNorm nothing to average over.
        _require(self.batch_size >= 2, f"batch_size: {self.batch_size} is not at least 2")
        for name in ("epochs", "accumulate"):
            _require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)} is not at least 1")
        _require(self.lr_per_sample > 0, f"lr_per_sample: {self.lr_per_sample} is not positive")
        _require(0 <= self.momentum < 1, f"momentum: {self.momentum} is not in [0, 1)")
        for name in ("warmup_epochs", "warmup_lr_per_sample", "final_lr_per_sample", "weight_decay", "clip_norm"):
            _require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)} is negative")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training; recorded in every checkpoint.

    Attributes:
        data, sampling, augment, model, loss, optim, run: the sections, each documented by its class.
    """

    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for shared, sections in SHARED_FIELDS.items():
            values = {section: getattr(getattr(self, section), shared) for section in sections}
            _require(len(set(values.values())) == 1, f"{shared}: sections disagree: {values}")
        _require(
            self.sampling.motion_room or not self.model.motion_head,
            "sampling.motion_room: False is not allowed with model.motion_head, which reads the motion behind the clip",
        )
        _require(
            not (self.loss.motion_own_video and self.loss.motion_own_place and self.model.motion_head)
            or self.sampling.temporal_negatives > 0,
            "sampling.temporal_negatives: 0 is not allowed with loss.motion_own_video and loss.motion_own_place, need "
            "at least 1: a position would have no negatives left",
        )

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON."""
        return asdict(self)


SHARED_FIELDS = {
    "clip_frames": ("sampling", "model"),
    "motion_frames": ("sampling", "model"),
    "crop_size": ("augment", "model"),
    "motion_input": ("augment", "model"),
}
"""Knobs that two sections read; setting one of them sets both."""


def build_config(recipe: str, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """A recipe with some fields changed.

    Args:
        recipe: a name in ``RECIPES``.
        overrides: ``section.field`` to value.

    Raises:
        ValueError: an unknown recipe, section or field, or a value out of range.
    """
    _require(recipe in RECIPES, f"recipe: {recipe!r} is not one of {', '.join(RECIPES)}")
    return _with_values(TrainConfig().as_dict(), {**RECIPES[recipe], **(overrides or {})})


def config_from_dict(stored: Mapping[str, Any]) -> TrainConfig:
    """The configuration that a checkpoint holds.

    Raises:
        ValueError: a field is unknown to this release or its value out of range.
    """
    flat = {f"{section}.{name}": value for section, values in stored.items() for name, value in values.items()}
    return _with_values(TrainConfig().as_dict(), flat)


def _with_values(base: dict[str, Any], changes: Mapping[str, Any]) -> TrainConfig:
    sections = {f.name: f.default_factory for f in fields(TrainConfig)}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if section not in sections or name not in base[section]:
            raise ValueError(_no_such_field(key))
        for target in SHARED_FIELDS.get(name, (section,)):
            base[target][name] = _as_tuple(value)
    built = {}
    for section, kind in sections.items():
        try:
            built[section] = typing.cast(Any, kind)(**{k: _as_tuple(v) for k, v in base[section].items()})
        except (ValueError, TypeError) as error:
            raise ValueError(f"{section}: {error}") from error
    return TrainConfig(**built)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _no_such_field(key: str) -> str:
    base = TrainConfig().as_dict()
    known = [f"{section}.{name}" for section in base for name in base[section]]
    near = difflib.get_close_matches(key, known, n=3)
    meant = f"; near it are {', '.join(near)}" if near else ""
    return f"{key}: no such field{meant}; `cmd-train recipes ucf101` prints all of them"


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Reads ``section.field=value`` texts, the value by the field's type.

    Raises:
        ValueError: a text without ``=``, an unknown field, or a value that is not of the field's type.
    """
    out = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        _require(bool(equals), f"--set {pair!r}: need SECTION.FIELD=VALUE")
        out[key] = _parse_value(key, text)
    return out


def _parse_value(key: str, text: str) -> Any:
    section, _, name = key.partition(".")
    kinds = {f.name: f.default_factory for f in fields(TrainConfig)}
    hints = typing.get_type_hints(kinds[section]) if section in kinds else {}
    _require(name in hints, _no_such_field(key))
    hint = hints[name]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if str in options or typing.get_origin(hint) is typing.Literal:
        return None if text == "none" and type(None) in options else text
    try:
        value = json.loads(text.lower() if bool in options else text)
    except ValueError:
        raise ValueError(f"{key}: {text!r} is not a value of type {getattr(hint, '__name__', hint)}") from None
    wrong = isinstance(value, bool) != (bool in options) or (int in options and not isinstance(value, int))
    # A text where a number belongs, or a number beyond all numbers, which JSON as Python reads it lets through.
    wrong = wrong or (float in options and not (isinstance(value, int | float) and math.isfinite(value)))
    _require(not wrong, f"{key}: {text!r} is not a value of type {getattr(hint, '__name__', hint)}")
    return value


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two stored configurations, one text a field.

    A field that an older release did not know has the value that it has by default.
    """
    default = TrainConfig().as_dict()
    known = {section: {**default[section], **before.get(section, {})} for section in after}
    differ = [(s, n) for s in after for n in after[s] if _plain(known[s].get(n)) != _plain(after[s][n])]
    return [f"{s}.{n}: {known[s].get(n)!r} is now {after[s][n]!r}" for s, n in differ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_finetuning(config: TrainConfig) -> None:
    """Refuses settings that fine-tuning cannot follow.

    Raises:
        ValueError: the context head is on, or clips are to be rotated away from their motion.
    """
    if config.model.context_head:
        raise ValueError("model.context_head: True is not allowed in fine-tuning, which has no context loss")
    if config.model.motion_head and config.augment.rotation_degrees > 0:
        raise ValueError(
            f"augment.rotation_degrees: {config.augment.rotation_degrees} is not allowed with --auxiliary motion, "
            "need 0: vectors do not follow a rotation"
        )


FREE = (
    "data.workers",
    "data.max_damaged",
    "run.log_seconds",
    "run.checkpoint_",
    "run.keep_checkpoints",
    "run.milestone_epochs",
    "run.tensorboard",
    "run.batch_picture",
    "run.knn_epochs",
)
"""Fields, by how they begin, that may change from run to run: how fast and how often things are done, not what is
computed."""
