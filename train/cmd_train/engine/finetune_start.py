"""What fine-tuning takes from where it starts: a backbone and, if it is to go on with it, the motion head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cmd_train.checkpoints.files import CheckpointError, list_checkpoints, load_checkpoint
from cmd_train.checkpoints.initial import open_source, training_of
from cmd_train.checkpoints.published import load_named, load_published
from cmd_train.config import TrainConfig, config_from_dict
from cmd_train.models.supervised import SupervisedModel

BACKBONE_FIELDS = ("model.backbone", "model.width")
MOTION_FIELDS = (
    *("model.motion_input", "model.clip_frames", "model.crop_size", "model.motion_frames", "model.encoder_width"),
    *("model.predictor_width", "model.predictor_heads", "model.predictor_ff", "model.encoder_layers"),
    *("model.decoder_layers", "model.head_hidden", "model.embedding_dim"),
)
CLIP_FIELDS = ("model.clip_frames", "sampling.stride", "model.crop_size")
VECTOR_FIELDS = ("augment.motion_clamp_px", "augment.rescale_vectors", "augment.global_motion")
"""These may differ, but change what the network sees."""

_BACKBONE, _MOTION = "backbone.", "motion."


def load_start(model: SupervisedModel, config: TrainConfig, source: Path) -> tuple[dict[str, Any], list[str]]:
    """Replaces a fresh network's backbone, and its motion head if both it and the source have one.

    The source's other heads, and the classifier of a fine-tuned one, are dropped; the classifier stays new. Of a
    published file the backbone alone is taken.

    Args:
        model: the network to fill, in place; unchanged after an error.
        config: its configuration.
        source: a checkpoint or a training's folder of this project, or a published file.

    Returns:
        What to record (``source``, ``sha256`` of the weights file, the ``part`` taken and, if known, what it was
        ``trained_on``), and lines for the user.

    Raises:
        ValueError: the networks differ; the message names all fields, or all names and shapes.
        OSError: the source cannot be read.
    """
    given = open_source(source)
    record: dict[str, Any] = {"source": str(source), "sha256": given.sha256, "part": "backbone"}
    if given.checkpoint is None:
        try:
            load_published(model.backbone, given.state)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        new_head = ["the motion head starts new"] if config.model.motion_head else []
        return record, [f"took the backbone of {source}", *new_head]
    settings = given.checkpoint.config["settings"]
    theirs = config_from_dict(settings)
    with_motion = config.model.motion_head and any(name.startswith(_MOTION) for name in given.state)
    _require_equal(source, theirs, config, (*BACKBONE_FIELDS, *(MOTION_FIELDS if with_motion else ())))
    try:
        load_named(model.backbone, _below(given.state, _BACKBONE))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    if with_motion:
        load_named(model.motion, _below(given.state, _MOTION))
        record["part"] = "backbone and motion head"
    record["trained_on"] = training_of(given.checkpoint)
    said = [f"took the {record['part']} of {given.checkpoint.path}, step {given.checkpoint.step}"]
    if config.model.motion_head and not with_motion:
        said.append("it has no motion head; that one starts new")
    changed = _differences(theirs, config, (*CLIP_FIELDS, *(VECTOR_FIELDS if with_motion else ())))
    if changed:
        said.append(f"note: it was trained on other input: {_told(changed)}")
    return record, said


def recorded_start(run_dir: Path, source: Path | None) -> dict[str, Any] | None:
    """What the training in a folder has recorded of its start.

    Args:
        run_dir: has a checkpoint.
        source: where it is to have started; None for scratch.

    Raises:
        CheckpointError: it started elsewhere.
    """
    record: dict[str, Any] | None = load_checkpoint(run_dir).config.get("init")
    began = Path(record["source"]).resolve() if record else None
    if began != (source and source.resolve()):
        raise CheckpointError(
            f"{run_dir} holds a training that began from {record['source'] if record else 'scratch'}; "
            "choose another folder, or give the same --from to continue it"
        )
    return record


def has_started(run_dir: Path) -> bool:
    """Whether there is a training to continue."""
    return bool(list_checkpoints(run_dir))


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _require_equal(source: Path, theirs: TrainConfig, ours: TrainConfig, names: tuple[str, ...]) -> None:
    differ = _differences(theirs, ours, names)
    if differ:
        same = " ".join(f"--set {name}={value}" for name, (value, _) in differ.items())
        raise ValueError(
            f"{source}: its network is another one: {_told(differ)}; choose another recipe, or give {same}"
        )


def _differences(theirs: TrainConfig, ours: TrainConfig, names: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    pairs = {name: (_value(theirs, name), _value(ours, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _value(config: TrainConfig, name: str) -> Any:
    section, _, field = name.partition(".")
    return getattr(getattr(config, section), field)


def _told(differ: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} {theirs} there, {ours} here" for name, (theirs, ours) in differ.items())
