"""Initial weights of a network, from published weights or from checkpoints of this project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cmd_train.checkpoints.files import (
    Checkpoint,
    CheckpointError,
    follow_best,
    is_weights_file,
    list_checkpoints,
    load_checkpoint,
    read_config,
    read_weights,
    save_checkpoint,
    sha256,
)
from cmd_train.checkpoints.published import (
    PUBLISHED_BACKBONE,
    backbone_part,
    load_named,
    load_published,
    load_submodule,
    published_name,
    read_weights_file,
    without_wrappers,
)
from cmd_train.config import TrainConfig, config_from_dict
from cmd_train.models.backbones import build_backbone
from cmd_train.models.build import build_model
from cmd_train.models.config import BACKBONE_NAMES, BackboneName
from cmd_train.models.pretrain import PretrainModel

InitPart = Literal["auto", "all", "backbone"]
INIT_PARTS: tuple[InitPart, ...] = get_args(InitPart)
BACKBONE_PREFIX, MOTION_PREFIX = "backbone.", "motion."
_NAMES_SHOWN = 8
_ALLOWED_SOURCES = "; give a run folder, a checkpoint or its weights file, or a published .pth or .safetensors file"


@dataclass(frozen=True, kw_only=True)
class PublishedNetwork:
    """Network in a published weights file, as inferred from its parameter names.

    Attributes:
        backbone: name of the backbone.
        complete: whether the file holds the complete pre-training network, not the backbone alone.
    """

    backbone: BackboneName
    complete: bool


def detect_network(state: Mapping[str, Tensor]) -> PublishedNetwork:
    """Infer the network in a published weights file from its parameter names.

    Raises:
        ValueError: the names fit none of the backbones; the message shows some of them.
    """
    given, names = set(without_wrappers(state)), set(backbone_part(state))
    prefixed = {name for name in given if name.startswith(PUBLISHED_BACKBONE)}
    expected = {name: _published_names(name) for name in BACKBONE_NAMES}
    best = min(BACKBONE_NAMES, key=lambda name: len(expected[name] ^ names))
    if 2 * len(expected[best] & names) < len(expected[best]):
        shown = ", ".join(sorted(given)[:_NAMES_SHOWN])
        raise ValueError(
            f"the {len(given)} parameter names fit none of the backbones {', '.join(BACKBONE_NAMES)}: {shown} ..."
        )
    return PublishedNetwork(backbone=best, complete=bool(prefixed) and len(prefixed) < len(given))


def _published_names(backbone: str) -> set[str]:
    with torch.device("meta"):
        return {published_name(name) for name in build_backbone(backbone).state_dict()}


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """A loaded weights file.

    Attributes:
        file: the file.
        state: tensors by name, as named in the file.
        checkpoint: checkpoint of this project that the file belongs to; None for published weights.
    """

    file: Path
    state: Mapping[str, Tensor]
    checkpoint: Checkpoint | None

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the file."""
        return sha256(self.file)


def open_source(path: Path) -> WeightsSource:
    """Read a checkpoint, its weights file under any name, the last checkpoint of a run folder, or published weights.

    Raises:
        ValueError: the path is none of these.
        OSError: it cannot be read.
    """
    path = follow_best(path)
    if not path.exists():
        raise ValueError(f"{path}: does not exist{_ALLOWED_SOURCES}")
    if path.is_dir() or is_weights_file(path):
        checkpoint = load_checkpoint(path) if path.is_dir() else read_weights(path)
        return WeightsSource(file=checkpoint.weights_file, state=checkpoint.weights, checkpoint=checkpoint)
    try:
        return WeightsSource(file=path, state=read_weights_file(path), checkpoint=None)
    except ValueError as error:
        raise ValueError(f"{error}{_ALLOWED_SOURCES}") from error


def training_provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a checkpoint was trained on, to be recorded by a run that starts from it.

    Returns:
        ``data_hash``, ``split_column``, ``train_part``, and ``initial_weights``: the same record of its own initial
        weights.
    """
    config = checkpoint.config
    data = config_from_dict(config.get("settings", {})).data
    return {
        "data_hash": config.get("data_hash"),
        "split_column": data.split_column,
        "train_part": data.train_part,
        "initial_weights": config.get("init"),
    }


def recorded_initial(run_dir: Path) -> dict[str, Any] | None:
    """Return the record of the initial weights of a run with checkpoints; None if it started from scratch.

    Raises:
        CheckpointError: all checkpoints are damaged.
    """
    # All checkpoints of a run have the same record. Damaged ones are reported when the run is continued.
    *newer, oldest = reversed(list_checkpoints(run_dir))
    for checkpoint in newer:
        with suppress(CheckpointError):
            return _initial_of(checkpoint)
    return _initial_of(oldest)


def _initial_of(checkpoint: Path) -> dict[str, Any] | None:
    record: dict[str, Any] | None = read_config(checkpoint).get("init")
    return record


def check_same_initial(run_dir: Path, record: Mapping[str, Any] | None, source: Path | None) -> None:
    """Check that a run that is to be continued started from the given initial weights.

    Args:
        run_dir: run folder.
        record: record of its initial weights.
        source: path of the given initial weights; None for scratch.

    Raises:
        CheckpointError: the run started from other weights.
    """
    recorded = Path(record["source"]).resolve() if record else None
    if recorded != (source and source.resolve()):
        raise CheckpointError(
            f"{run_dir} contains a run that started from {record['source'] if record else 'scratch'}; "
            "choose another folder, or give the same initial weights to continue it"
        )


def initialize(
    run_dir: Path, source: Path | None, load: Callable[[Path], dict[str, Any]], *, may_omit: bool = False
) -> dict[str, Any] | None:
    """Load the initial weights of a run, unless it is continued.

    Args:
        run_dir: run folder.
        source: path of the initial weights; None for none.
        load: loads them and returns their record.
        may_omit: whether a run with initial weights may be continued without naming them.

    Returns:
        The record of the initial weights; None without any.

    Raises:
        CheckpointError: the run that is to be continued started from other weights, or all checkpoints are damaged.
    """
    if not list_checkpoints(run_dir):
        return load(source) if source else None
    record = recorded_initial(run_dir)
    if source or not may_omit:
        check_same_initial(run_dir, record, source)
    return record


def write_imported(path: Path, out_dir: Path, config: TrainConfig, state: Mapping[str, Tensor]) -> Path:
    """Write a checkpoint of step 0 with published weights.

    Args:
        path: published weights; recorded.
        out_dir: run folder to write to.
        config: configuration whose ``model`` section describes the network; one without heads is a backbone.
        state: tensors of the file.

    Returns:
        The checkpoint folder.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; the message lists them.
        CheckpointError: ``out_dir`` already contains checkpoints.
    """
    if list_checkpoints(out_dir):
        raise CheckpointError(f"{out_dir} already contains checkpoints; choose another folder")
    model = build_model(config.model, seed=config.run.seed)
    complete = config.model.context_head or config.model.motion_head
    load_published(model if complete else model.backbone, state)
    stored = {
        "settings": config.as_dict(),
        "data_hash": None,
        "imported": {"source": str(path), "sha256": sha256(path), "part": "all" if complete else "backbone"},
    }
    state_of_run: dict[str, Any] = {"step": 0, "recent_metrics": {}}
    return save_checkpoint(out_dir, step=0, weights=model.state_dict(), state=state_of_run, config=stored)


def load_initial(model: PretrainModel, source: Path, part: str = "auto") -> dict[str, Any]:
    """Load initial weights into a pre-training network, all that are requested or none.

    Args:
        model: network to fill, in place.
        source: checkpoint, its weights file, run folder, or published weights.
        part: ``all`` for the whole network, ``backbone`` for the backbone alone, or ``auto`` for the whole network if
            the source holds more than a backbone.

    Returns:
        Record of the initial weights: ``source``, ``sha256`` of the weights file, the ``part`` loaded and, for a
        checkpoint of this project, what it was ``trained_on``.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; the message lists them.
        OSError: the source cannot be read.
    """
    if part not in INIT_PARTS:
        raise ValueError(f"init_part: must be one of {', '.join(INIT_PARTS)}, got {part!r}")
    given = open_source(source)
    complete = part == "all"
    if part == "auto" and given.checkpoint:
        complete = any(not name.startswith(BACKBONE_PREFIX) for name in given.state)
    elif part == "auto":
        try:
            complete = detect_network(given.state).complete
        except ValueError as error:
            raise ValueError(f"{source}: {error}{_ALLOWED_SOURCES}") from error
    try:
        if not given.checkpoint:
            load_published(model if complete else model.backbone, given.state)
        elif complete:
            load_named(model, given.state)
        else:
            load_submodule(model.backbone, given.state, BACKBONE_PREFIX)
    except ValueError as error:
        hint = "; --init-part backbone loads the backbone alone" if complete else ""
        raise ValueError(f"{source}: {error}{hint}") from error
    record = {"source": str(source), "sha256": given.sha256, "part": "all" if complete else "backbone"}
    return record | ({"trained_on": training_provenance(given.checkpoint)} if given.checkpoint else {})
