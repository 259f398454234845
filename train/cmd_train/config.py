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
from cmd_train.engine.config import RunConfig
from cmd_train.engine.optim import OptimConfig
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
