"""Configuration of a training run: sections, recipes, and overrides by field name.

``--set section.field=value`` overrides any field; a field shared by two sections is set in both.
"""

from __future__ import annotations

import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cmd_extract.system.validation import require, require_choice, require_range
from cmd_train.augment.config import AugmentConfig
from cmd_train.data.sampling import SamplingConfig
from cmd_train.losses.config import LossConfig
from cmd_train.models.config import ModelConfig
from cmd_train.recipes import RECIPES

PRECISIONS = ("auto", "float32", "tf32", "bf16")
OPTIMIZERS = ("sgd", "adamw")
LOGGERS = ("none", "tensorboard", "wandb", "mlflow")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Selection and loading of the training videos.

    Attributes:
        split_column: split column of the manifest that selects the videos. None uses the only split column of the
            shards, or all videos if they have none.
        train_part: part of that split to train on.
        all_videos: train on all videos, whatever their splits.
        samples_per_video: samples per video and epoch; more than 1 suits small datasets.
        shuffle_shards: random shards to shuffle at a time. 0: all; with a cache, as many as fit half of it.
        workers: number of data loading processes; 0 loads in the training process.
        max_damaged: damaged videos to tolerate; one more stops the run. Their samples do not count and are reported.
        timeout_seconds: longest wait for a batch from the data loading processes; then the run stops with an error.
    """

    split_column: str | None = None
    train_part: str = "train"
    all_videos: bool = False
    samples_per_video: int = 1
    shuffle_shards: int = 0
    workers: int = 2
    max_damaged: int = 0
    timeout_seconds: float = 300.0

    def __post_init__(self) -> None:
        require(
            not (self.all_videos and self.split_column),
            f"all_videos: contradicts split_column={self.split_column!r}; choose one of them",
        )
        require_range(self, "samples_per_video", ge=1)
        require_range(self, "shuffle_shards", "workers", "max_damaged", ge=0)
        require_range(self, "timeout_seconds", gt=0)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and learning-rate schedule; the defaults are the paper's for pre-training on UCF101.

    Attributes:
        optimizer: ``sgd`` (Nesterov momentum, as in the paper) or ``adamw``, which converges in far fewer steps.
        batch_size: global batch size, over all ranks.
        epochs: passes over the training videos.
        lr_per_sample: peak learning rate divided by the batch size.
        warmup_epochs: epochs of linear warm-up, updated at every step.
        warmup_lr_per_sample: initial learning rate of the warm-up divided by the batch size.
        final_lr_per_sample: final learning rate of the cosine schedule divided by the batch size.
        momentum: Nesterov momentum of SGD, or AdamW's first beta.
        weight_decay: weight decay (1e-3 in the released code, 5e-3 in the paper's text).
        decay_norms_and_biases: apply it to all parameters, as in the released code; if False, only to those with more
            than one dimension, which excludes scales and shifts of normalization layers, and biases.
        clip_norm: maximum gradient norm; 0 disables clipping.
        accumulate: number of micro-batches that each rank splits its batch into, to save memory. Negatives come from
            the same micro-batch only: the optimizer's batch stays the same, the contrastive task gets easier.
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
    decay_norms_and_biases: bool = True
    clip_norm: float = 15.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        require_choice(self, "optimizer", OPTIMIZERS)
        # A single clip has no negatives, and BatchNorm needs more than one sample.
        require_range(self, "batch_size", ge=2)
        require_range(self, "epochs", "accumulate", ge=1)
        require_range(self, "lr_per_sample", gt=0)
        require_range(self, "momentum", ge=0, lt=1)
        require_range(self, "warmup_epochs", "warmup_lr_per_sample", "final_lr_per_sample", ge=0)
        require_range(self, "weight_decay", "clip_norm", ge=0)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Execution, logging and checkpoints of a run.

    Attributes:
        seed: random seed of weights, sample order, sampling, augmentation and dropout.
        precision: ``float32``; ``tf32``, float32 with TF32 products on CUDA; ``bf16``, automatic mixed precision; or
            ``auto``, bf16 on GPUs that have it and float32 elsewhere.
        compile: compile the network with ``torch.compile``; if that fails, the run stops with an error.
        channels_last: use the channels-last memory format for the network's weights.
        activation_checkpointing: recompute the activations inside blocks in the backward pass instead of storing them:
            less memory, about a third more computation, the same numbers.
        log_seconds: approximate time between two log lines.
        checkpoint_epochs: epochs between two checkpoints.
        checkpoint_minutes: minutes after which an additional checkpoint is saved in between; 0 disables them.
        keep_checkpoints: number of newest checkpoints to keep; the best one is kept as well.
        milestone_epochs: epochs between two checkpoints that are kept permanently; 0 keeps none.
        logger: tool that receives the metrics beside ``metrics.jsonl``: ``none``, ``tensorboard``, ``wandb`` or
            ``mlflow``.
        batch_picture: draw the first batch to ``first_batch.png``.
        knn_epochs: epochs between two evaluations of label retrieval among the training videos; 0 disables them. Labels
            are used for nothing else.
    """

    seed: int = 0
    precision: str = "auto"
    compile: bool = False
    channels_last: bool = False
    activation_checkpointing: bool = False
    log_seconds: float = 10.0
    checkpoint_epochs: int = 10
    checkpoint_minutes: float = 30.0
    keep_checkpoints: int = 2
    milestone_epochs: int = 0
    logger: str = "none"
    batch_picture: bool = True
    knn_epochs: int = 0

    def __post_init__(self) -> None:
        require_range(self, "seed", ge=0, lt=2**31)
        require_choice(self, "precision", PRECISIONS)
        require_choice(self, "logger", LOGGERS)
        require_range(self, "checkpoint_epochs", "keep_checkpoints", ge=1)
        require_range(self, "log_seconds", "checkpoint_minutes", "milestone_epochs", "knn_epochs", ge=0)
        require(
            not (self.compile and self.activation_checkpointing),
            "activation_checkpointing: cannot be combined with compile, which chooses itself what to recompute",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Complete configuration of a training run; recorded in every checkpoint.

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
            require(len(set(values.values())) == 1, f"{shared}: must be the same in all sections, got {values}")
        require(
            self.sampling.motion_room or not self.model.motion_head,
            "sampling.motion_room: must be True with model.motion_head, which needs the motion after the clip",
        )
        if self.model.predicts_directions:
            self._check_directions()
        require(
            self.sampling.motion_window == "future" or self.model.predicts_directions or not self.model.motion_head,
            "sampling.motion_window: 'clip' needs loss.motion_target=directions",
        )

    def _check_directions(self) -> None:
        require(
            self.model.motion_input == "native",
            "model.motion_input: must be 'native' with loss.motion_target=directions, which needs validity",
        )
        require(
            self.sampling.temporal_negatives == 0,
            f"sampling.temporal_negatives: must be 0 with loss.motion_target=directions, which uses no negatives, got "
            f"{self.sampling.temporal_negatives}",
        )
        require(
            self.sampling.window_frames % self.model.window_parts == 0,
            f"model.direction_parts: {self.model.window_parts} parts do not divide the {self.sampling.window_frames} "
            "frames of a motion window",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the sections as nested plain values, for JSON."""
        return asdict(self)


SHARED_FIELDS = {
    "clip_frames": ("sampling", "model"),
    "motion_frames": ("sampling", "model"),
    "crop_size": ("augment", "model"),
    "motion_input": ("augment", "model"),
    "motion_target": ("loss", "model"),
    "motion_window": ("sampling", "model"),
}
"""Fields shared by two sections; setting one of them sets both."""

MUTABLE_FIELDS = (
    "data.workers",
    "data.max_damaged",
    "data.timeout_seconds",
    "run.log_seconds",
    "run.checkpoint_",
    "run.keep_checkpoints",
    "run.milestone_epochs",
    "run.logger",
    "run.batch_picture",
    "run.knn_epochs",
)
"""Prefixes of the fields that may change when a run is continued: they do not affect what is computed."""


def build_config(recipe: str, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Build a configuration from a recipe and overrides.

    Args:
        recipe: a name in ``RECIPES``.
        overrides: values by ``section.field``.

    Raises:
        ValueError: a recipe, section or field is unknown, or a value is out of range.
    """
    require(
        recipe in RECIPES,
        f"recipe: {recipe!r} is not one of {', '.join(RECIPES)}; `cmd-train recipes` describes them",
    )
    return _with_values(TrainConfig().as_dict(), {**RECIPES[recipe], **(overrides or {})})


def config_from_dict(stored: Mapping[str, Any]) -> TrainConfig:
    """Build a configuration from the settings stored in a checkpoint.

    Raises:
        ValueError: a field is unknown to this release or its value is out of range.
    """
    flat = {f"{section}.{name}": value for section, values in stored.items() for name, value in values.items()}
    flat.pop("run.tensorboard", None)  # before there was run.logger
    return _with_values(TrainConfig().as_dict(), flat)


def _with_values(base: dict[str, Any], changes: Mapping[str, Any]) -> TrainConfig:
    sections = {f.name: f.default_factory for f in fields(TrainConfig)}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if section not in sections or name not in base[section]:
            raise ValueError(_unknown_field(key))
        for target in SHARED_FIELDS.get(name, (section,)):
            base[target][name] = value
    built = {}
    for section, kind in sections.items():
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in base[section].items()}
        try:
            built[section] = typing.cast(Any, kind)(**values)
        except ValueError as error:
            raise ValueError(f"{section}.{error}") from error
        except TypeError as error:
            raise ValueError(f"{section}: {error}") from error
    return TrainConfig(**built)


def _unknown_field(key: str) -> str:
    base = TrainConfig().as_dict()
    known = [f"{section}.{name}" for section in base for name in base[section]]
    near = difflib.get_close_matches(key, known, n=3)
    hint = f". Did you mean {' or '.join(near)}?" if near else "."
    return f"{key}: unknown setting{hint} `cmd-train recipes RECIPE` prints all settings"


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Parse ``section.field=value`` strings, each value according to the type of its field.

    Raises:
        ValueError: a string has no ``=``, a field is unknown, or a value does not have the type of its field.
    """
    out = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        require(bool(equals), f"--set: must be SECTION.FIELD=VALUE, got {pair!r}")
        out[key] = _parse_value(key, text)
    return out


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a file of settings: JSON or, with any suffix but ``.json``, YAML.

    It holds sections of fields, as printed by ``--print-config``, which may be incomplete; or the ``config.json`` of a
    run, of which the settings are used.

    Returns:
        Values by ``section.field``.

    Raises:
        ValueError: the file is not readable, a field is unknown, or a value does not have the type of its field.
    """
    import yaml  # slow

    try:
        text = path.read_text("utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a readable file of settings ({' '.join(str(error).split())})") from error
    if isinstance(content, dict):
        content = content.get("settings", content)
    if not isinstance(content, dict) or not all(isinstance(values, dict) for values in content.values()):
        raise ValueError(f"{path}: must contain sections of settings, such as optim: {{epochs: 10}}")
    flat = {f"{section}.{name}": value for section, values in content.items() for name, value in values.items()}
    try:
        return {key: _parse_value(key, _as_text(value)) for key, value in flat.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _as_text(value: Any) -> str:
    """Return a value in the form in which ``--set`` takes it."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def _parse_value(key: str, text: str) -> Any:
    section, _, name = key.partition(".")
    kinds = {f.name: f.default_factory for f in fields(TrainConfig)}
    hints = typing.get_type_hints(kinds[section]) if section in kinds else {}
    if name not in hints:
        raise ValueError(_unknown_field(key))
    hint = hints[name]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if str in options or typing.get_origin(hint) is typing.Literal:
        return None if text == "none" and type(None) in options else text
    problem = f"{key}: must be of type {getattr(hint, '__name__', hint)}, got {text!r}"
    try:
        value = json.loads(text.lower() if bool in options else text)
    except ValueError:
        raise ValueError(problem) from None
    wrong = isinstance(value, bool) != (bool in options) or (int in options and not isinstance(value, int))
    # Python's JSON parser accepts NaN and Infinity.
    wrong = wrong or (float in options and not (isinstance(value, int | float) and math.isfinite(value)))
    require(not wrong, problem)
    return value


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """List the differences between two stored configurations, one string per field.

    A field that did not exist when the first one was stored has its default value there.
    """
    defaults = TrainConfig().as_dict()
    old = {section: defaults.get(section, {}) | before.get(section, {}) for section in after}
    differ = [
        (section, name)
        for section, values in after.items()
        for name, value in values.items()
        if _plain(old[section].get(name)) != _plain(value)
    ]
    return [f"{s}.{n}: {old[s].get(n)!r} is now {after[s][n]!r}" for s, n in differ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_finetuning(config: TrainConfig) -> None:
    """Reject settings that fine-tuning does not support.

    Raises:
        ValueError: the context head is on, or clips are rotated while motion vectors are predicted.
    """
    require(
        not config.model.context_head,
        "model.context_head: must be False in fine-tuning, which has no context loss",
    )
    require(
        not config.model.motion_head or config.augment.rotation_degrees == 0,
        f"augment.rotation_degrees: must be 0 with --auxiliary motion, got {config.augment.rotation_degrees}; motion "
        "vectors are not rotated with the clip",
    )
