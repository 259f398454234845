"""Training of video backbones on shards: pre-training without labels and fine-tuning with labels.

Public names: `build_config` makes a `TrainConfig` from a recipe and overrides; `load_checkpoint` reads a checkpoint;
`build_backbone` builds a backbone by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmd_extract.system.lazy import lazy_attributes

if TYPE_CHECKING:
    from cmd_train.checkpoints.files import load_checkpoint
    from cmd_train.config import TrainConfig, build_config
    from cmd_train.models.backbones import build_backbone

__all__ = ["TrainConfig", "build_backbone", "build_config", "load_checkpoint"]

__getattr__, __dir__ = lazy_attributes(
    "cmd_train",
    {
        **dict.fromkeys(("TrainConfig", "build_config"), "cmd_train.config"),
        "build_backbone": "cmd_train.models.backbones",
        "load_checkpoint": "cmd_train.checkpoints.files",
    },
)
