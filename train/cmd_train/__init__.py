"""Training of video backbones on shards: pre-training without labels and fine-tuning with labels.

Public names; nothing else of the package is promised to stay:

- `load_backbone` loads the backbone (`Backbone`) of a run, a checkpoint, an exported folder or published weights; it
  maps clips to a `BackboneOutput`. `build_backbone` builds one by name, without trained weights.
- `ShardDataset` reads clips of shards (`ShardItem`) for custom training loops; `center_crop` crops and normalizes
  them for a backbone.
- `load_checkpoint` reads a checkpoint (`Checkpoint`). `build_config` makes a `TrainConfig` from a recipe and overrides.
- `CheckpointError` and `DamagedSampleError` are raised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmd_extract.system.lazy import lazy_attributes

if TYPE_CHECKING:
    from cmd_train.augment.apply import center_crop
    from cmd_train.checkpoints.backbone import load_backbone
    from cmd_train.checkpoints.files import Checkpoint, CheckpointError, load_checkpoint
    from cmd_train.config import TrainConfig, build_config
    from cmd_train.data.dataset import DamagedSampleError
    from cmd_train.data.shard_dataset import ShardDataset, ShardItem
    from cmd_train.models.backbones import Backbone, BackboneOutput, build_backbone

__all__ = [
    "Backbone",
    "BackboneOutput",
    "Checkpoint",
    "CheckpointError",
    "DamagedSampleError",
    "ShardDataset",
    "ShardItem",
    "TrainConfig",
    "build_backbone",
    "build_config",
    "center_crop",
    "load_backbone",
    "load_checkpoint",
]

__getattr__, __dir__ = lazy_attributes(
    "cmd_train",
    {
        **dict.fromkeys(("TrainConfig", "build_config"), "cmd_train.config"),
        **dict.fromkeys(("Backbone", "BackboneOutput", "build_backbone"), "cmd_train.models.backbones"),
        **dict.fromkeys(("Checkpoint", "CheckpointError", "load_checkpoint"), "cmd_train.checkpoints.files"),
        **dict.fromkeys(("ShardDataset", "ShardItem"), "cmd_train.data.shard_dataset"),
        "DamagedSampleError": "cmd_train.data.dataset",
        "center_crop": "cmd_train.augment.apply",
        "load_backbone": "cmd_train.checkpoints.backbone",
    },
)
