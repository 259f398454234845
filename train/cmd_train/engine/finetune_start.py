"""Initial weights of fine-tuning: a backbone and, with the auxiliary motion loss, a motion head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmd_train.checkpoints.initial import BACKBONE_PREFIX, MOTION_PREFIX, open_source, training_provenance
from cmd_train.checkpoints.published import load_published, load_submodule
from cmd_train.config import TrainConfig, config_from_dict
from cmd_train.losses.config import MotionTarget
from cmd_train.models.supervised import SupervisedModel

# Fields that must be the same to load a backbone, and a motion head that predicts features or directions.
BACKBONE_FIELDS = ("model.backbone", "model.width", "model.shortcut")
MOTION_FIELDS: Mapping[MotionTarget, tuple[str, ...]] = {
    "features": (
        *("model.motion_target", "model.motion_input", "model.clip_frames", "model.crop_size", "model.motion_frames"),
        *("model.encoder_width", "model.predictor_width", "model.predictor_heads", "model.predictor_ff"),
        *("model.encoder_layers", "model.decoder_layers", "model.head_hidden", "model.embedding_dim"),
    ),
    "directions": ("model.motion_target", "model.motion_window", "model.directions", "model.direction_parts"),
}
# Fields that may differ, but change what the network sees.
CLIP_FIELDS = ("model.clip_frames", "sampling.stride", "model.crop_size")
VECTOR_FIELDS = ("augment.motion_clamp_px", "augment.rescale_vectors", "augment.global_motion")


def load_start(model: SupervisedModel, config: TrainConfig, source: Path) -> tuple[dict[str, Any], list[str]]:
    """Load the backbone of a classifier, and its motion head if both it and the source have one.

    Other heads and the classifier of the source are ignored. From published weights, only the backbone is loaded.

    Args:
        model: network to fill, in place; unchanged after an error.
        config: its configuration.
        source: checkpoint, its weights file, run folder, or published weights.

    Returns:
        Record of the initial weights (``source``, ``sha256`` of the weights file, the ``part`` loaded and, if known,
        what it was ``trained_on``), and lines for the user.

    Raises:
        ValueError: the networks differ; the message lists the fields, or the names and shapes.
        OSError: the source cannot be read.
    """
    given = open_source(source)
    record: dict[str, Any] = {"source": str(source), "sha256": given.sha256, "part": "backbone"}
    if given.checkpoint is None:
        try:
            load_published(model.backbone, given.state)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        new_head = ["The motion head is initialized from scratch"] if config.model.motion_head else []
        return record, [f"Loaded the backbone from {source}", *new_head]
    settings = given.checkpoint.config["settings"]
    theirs = config_from_dict(settings)
    with_motion = config.model.motion_head and any(name.startswith(MOTION_PREFIX) for name in given.state)
    motion_fields = MOTION_FIELDS[config.model.motion_target] if with_motion else ()
    _require_equal(source, theirs, config, (*BACKBONE_FIELDS, *motion_fields))
    try:
        load_submodule(model.backbone, given.state, BACKBONE_PREFIX)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    if with_motion:
        load_submodule(model.motion, given.state, MOTION_PREFIX)
        record["part"] = "backbone and motion head"
    record["trained_on"] = training_provenance(given.checkpoint)
    lines = [f"Loaded the {record['part']} from {given.checkpoint.path}, step {given.checkpoint.step}"]
    if config.model.motion_head and not with_motion:
        lines.append("The source has no motion head; the motion head is initialized from scratch")
    changed = _differences(theirs, config, (*CLIP_FIELDS, *(VECTOR_FIELDS if with_motion else ())))
    if changed:
        lines.append(f"Note: the source was trained with different input: {_format(changed)}")
    return record, lines


def _require_equal(source: Path, theirs: TrainConfig, ours: TrainConfig, names: tuple[str, ...]) -> None:
    differ = _differences(theirs, ours, names)
    if differ:
        options = " ".join(f"--set {name}={value}" for name, (value, _) in differ.items())
        raise ValueError(f"{source}: different network: {_format(differ)}; choose another recipe, or add {options}")


def _differences(theirs: TrainConfig, ours: TrainConfig, names: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    pairs = {name: (_value(theirs, name), _value(ours, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _value(config: TrainConfig, name: str) -> Any:
    section, _, field = name.partition(".")
    return getattr(getattr(config, section), field)


def _format(differ: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} {theirs} in the source, {ours} in this run" for name, (theirs, ours) in differ.items())
