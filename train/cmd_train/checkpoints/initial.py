"""Where a network's first weights come from: published files, imported or used at once, and our own checkpoints."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor

from cmd_train.checkpoints.files import (
    Checkpoint,
    CheckpointError,
    is_weights_file,
    list_checkpoints,
    load_checkpoint,
    read_weights,
    save_checkpoint,
)
from cmd_train.checkpoints.published import (
    PUBLISHED_BACKBONE,
    load_named,
    load_published,
    published_name,
    read_weights_file,
    without_wrappers,
)
from cmd_train.config import TrainConfig, config_from_dict
from cmd_train.models.backbones import BACKBONE_NAMES, Backbone, BackboneName, build_backbone
from cmd_train.models.build import build_model
from cmd_train.models.pretrain import PretrainModel

InitPart = Literal["auto", "all", "backbone"]
INIT_PARTS: tuple[InitPart, ...] = get_args(InitPart)
_BACKBONE = "backbone."
_LIST_LENGTH = 8
_NEITHER = "; give a training's folder, a checkpoint or its weights file, or a published .pth or .safetensors file"


@dataclass(frozen=True, kw_only=True)
class PublishedNetwork:
    """What a published file holds, as its names tell.

    Attributes:
        backbone: which backbone.
        whole: whether the other parts of the pre-training network are there too.
    """

    backbone: BackboneName
    whole: bool


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file; no code in it is run.

    Raises:
        ValueError: the file is not one of named tensors.
        OSError: it cannot be read.
    """
    try:
        return read_weights_file(path)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        # torch goes on for a page about settings that nobody can give here.
        why = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise ValueError(f"{path}: not a readable .pth or .safetensors file of weights ({why})") from error


def detect_network(state: Mapping[str, Tensor]) -> PublishedNetwork:
    """Tells the published networks apart by the names of their tensors.

    Raises:
        ValueError: the names are those of none of them; the message shows some.
    """
    given = set(without_wrappers(state))
    prefixed = {name for name in given if name.startswith(PUBLISHED_BACKBONE)}
    names = {name.removeprefix(PUBLISHED_BACKBONE) for name in prefixed} or given
    expected = {name: _published_names(name) for name in BACKBONE_NAMES}
    best = min(BACKBONE_NAMES, key=lambda name: len(expected[name] ^ names))
    if 2 * len(expected[best] & names) < len(expected[best]):
        shown = ", ".join(sorted(given)[:_LIST_LENGTH])
        raise ValueError(f"none of {', '.join(BACKBONE_NAMES)} has names like these ({len(given)}): {shown} ...")
    return PublishedNetwork(backbone=best, whole=bool(prefixed) and len(prefixed) < len(given))


def _published_names(backbone: str) -> set[str]:
    with torch.device("meta"):
        return {published_name(name) for name in build_backbone(backbone).state_dict()}


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """A file of weights, read.

    Attributes:
        file: the file itself.
        state: its tensors, by the names that it gives them.
        checkpoint: the checkpoint of this project that it belongs to; None for a published file.
    """

    file: Path
    state: Mapping[str, Tensor]
    checkpoint: Checkpoint | None

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the file."""
        return _sha256(self.file)


def open_source(path: Path) -> WeightsSource:
    """Reads a checkpoint, its weights file by any name, a training's folder (its last checkpoint) or a published file.

    Raises:
        ValueError: it is none of these.
        OSError: it cannot be read.
    """
    if path.is_dir() or is_weights_file(path):
        checkpoint = load_checkpoint(path) if path.is_dir() else read_weights(path)
        return WeightsSource(file=checkpoint.weights_file, state=checkpoint.weights, checkpoint=checkpoint)
    try:
        return WeightsSource(file=path, state=read_published(path), checkpoint=None)
    except ValueError as error:
        raise ValueError(f"{error}{_NEITHER}") from error


def training_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint was trained on, to be recorded by a training that starts from it.

    Returns:
        ``data_hash``, ``split_column`` and ``part``, and ``began_from``: the record of where it started itself.
    """
    config = checkpoint.config
    data = config_from_dict(config.get("settings", {})).data
    return {
        "data_hash": config.get("data_hash"),
        "split_column": data.split_column,
        "part": data.part,
        "began_from": config.get("init"),
    }


def write_imported(
    path: Path,
    out_dir: Path,
    config: TrainConfig,
    state: Mapping[str, Tensor],
) -> Path:
    """Writes a checkpoint of step 0 with published weights.

    Args:
        path: where the weights come from; recorded.
        out_dir: as the folder of a training.
        config: its ``model`` section says what the file holds; a network without heads takes a backbone.
        state: the file's tensors.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: names are missing or unexpected or shapes differ; all are listed.
        CheckpointError: ``out_dir`` holds checkpoints already.
    """
    if list_checkpoints(out_dir):
        raise CheckpointError(f"{out_dir} holds checkpoints already; choose another folder")
    model = build_model(config.model, seed=config.run.seed)
    whole = config.model.context_head or config.model.motion_head
    load_published(model if whole else model.backbone, state)
    stored = {
        "settings": config.as_dict(),
        "data_hash": None,
        "imported": {"source": str(path), "sha256": _sha256(path), "part": "all" if whole else "backbone"},
    }
    fresh: dict[str, Any] = {"step": 0, "recent_metrics": {}}
    return save_checkpoint(out_dir, step=0, weights=model.state_dict(), state=fresh, config=stored)


def load_initial(model: PretrainModel, source: Path, part: str = "auto") -> dict[str, Any]:
    """Replaces a fresh network's weights, all that are asked for or none.

    Args:
        model: the network to fill, in place.
        source: a checkpoint or a training's folder of this project, or a published file.
        part: ``all`` of the network, its ``backbone`` alone, or ``auto``: all if the source holds more than a
            backbone.

    Returns:
        What to record: ``source``, ``sha256`` of the weights file, the ``part`` taken and, of a checkpoint of this
        project, what it was ``trained_on``.

    Raises:
        ValueError: names are missing or unexpected or shapes differ; all are listed.
        OSError: the source cannot be read.
    """
    if part not in INIT_PARTS:
        raise ValueError(f"init_part: {part!r} is not one of {', '.join(INIT_PARTS)}")
    load: Callable[[PretrainModel | Backbone, Mapping[str, Tensor]], None]
    given = open_source(source)
    if given.checkpoint:
        whole, load = any(not name.startswith(_BACKBONE) for name in given.state), _load_own
    else:
        try:
            whole, load = part == "auto" and detect_network(given.state).whole, load_published
        except ValueError as error:
            raise ValueError(f"{source}: {error}{_NEITHER}") from error
    everything = part == "all" or (part == "auto" and whole)
    try:
        load(model if everything else model.backbone, given.state)
    except ValueError as error:
        hint = "; --init-part backbone takes the backbone alone" if everything else ""
        raise ValueError(f"{source}: {error}{hint}") from error
    record = {"source": str(source), "sha256": given.sha256, "part": "all" if everything else "backbone"}
    return record | ({"trained_on": training_of(given.checkpoint)} if given.checkpoint else {})


def _load_own(model: PretrainModel | Backbone, weights: Mapping[str, Tensor]) -> None:
    if isinstance(model, Backbone):
        weights = {name.removeprefix(_BACKBONE): t for name, t in weights.items() if name.startswith(_BACKBONE)}
    load_named(model, weights)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
