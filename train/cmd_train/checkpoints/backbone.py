"""Open the backbone of a run, a checkpoint, an exported folder or published weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from cmd_train.checkpoints.files import Checkpoint
from cmd_train.checkpoints.initial import BACKBONE_PREFIX, detect_network, open_source
from cmd_train.checkpoints.published import load_published, load_submodule
from cmd_train.config import TrainConfig, build_config, config_from_dict
from cmd_train.models.backbones import Backbone, build_backbone


@dataclass(frozen=True, kw_only=True)
class OpenedBackbone:
    """A backbone with its weights, and what is known of its training.

    Attributes:
        backbone: the network, in evaluation mode, on the CPU.
        config: its training configuration. Of published weights only backbone, clip length, stride and crop are known:
            those of the paper.
        extraction: settings of the extraction that it was trained on, as in ``ShardHeader.config``; None if unknown.
        checkpoint: the checkpoint; None for published weights.
    """

    backbone: Backbone
    config: TrainConfig
    extraction: Mapping[str, Any] | None
    checkpoint: Checkpoint | None


def open_backbone(path: Path) -> OpenedBackbone:
    """Open the backbone of a run (its last checkpoint), a checkpoint, an exported folder or published weights.

    Raises:
        ValueError: the path is none of these, or the weights do not fit the network.
        OSError: a file cannot be read.
    """
    source = open_source(path)
    if source.checkpoint is None:
        try:
            name = detect_network(source.state).backbone
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        config = build_config(
            "ucf101", {"model.backbone": name, "model.context_head": False, "model.motion_head": False}
        )
    else:
        config = config_from_dict(source.checkpoint.config["settings"])
    model = config.model
    backbone = build_backbone(model.backbone, width=model.width, shortcut=model.shortcut)
    try:
        if source.checkpoint is None:
            load_published(backbone, source.state)
        else:
            load_submodule(backbone, source.state, BACKBONE_PREFIX)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return OpenedBackbone(
        backbone=backbone.eval(),
        config=config,
        extraction=source.checkpoint.config.get("extraction") if source.checkpoint else None,
        checkpoint=source.checkpoint,
    )


def load_backbone(path: str | PathLike[str]) -> Backbone:
    """Load a backbone with its weights, in evaluation mode, on the CPU.

    It is a ``torch.nn.Module`` that maps clips (B, 3, T, H, W), normalized RGB with H = W (see ``center_crop``), to a
    ``BackboneOutput``: ``feature_BCTHW``, ``tokens_BCTHW`` and ``pooled_BC``.

    Args:
        path: a run folder (its last checkpoint), a checkpoint, a folder of ``cmd-train export``, or published weights.

    Raises:
        ValueError: the path is none of these, or the weights do not fit the network.
        OSError: a file cannot be read.
    """
    return open_backbone(Path(path)).backbone
