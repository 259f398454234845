"""Recipes: named sets of overrides, from which ``cmd_train.config`` builds configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_SMALL_MODEL = {
    "model.backbone": "r2plus1d_10",
    "model.width": 16,
    # With strided shortcuts a network this small is blind to most frames at the start (models/resnet.py).
    "model.shortcut": "average",
    "model.encoder_width": 16,
    "model.crop_size": 56,
    "model.embedding_dim": 128,
    "model.head_hidden": 256,
    "model.predictor_width": 128,
    "model.predictor_heads": 4,
    "model.predictor_ff": 128,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
    "run.precision": "float32",
}

# Motion prediction as a classification of directions over the whole clip (losses/directions.py). With few samples, the
# paper's contrastive prediction of features learns the position first (eval/RESULTS.md).
_DIRECTIONS = {
    "loss.motion_target": "directions",
    "sampling.motion_window": "clip",
    "sampling.temporal_negatives": 0,
    "augment.rescale_vectors": True,
}

# Shared by all fine-tuning recipes: a backbone and a classifier, clips from anywhere in the video, no clipping.
_FINETUNE = {
    "model.context_head": False,
    "model.motion_head": False,
    "sampling.motion_room": False,
    "optim.clip_norm": 0.0,
}

# The paper states the final learning rate without "x batch size": it is 1e-6 at a batch size of 8.
_PAPER_FINETUNE = _FINETUNE | {
    "augment.rotation_degrees": 10.0,
    "optim.batch_size": 8,
    "optim.epochs": 120,
    "optim.warmup_epochs": 10.0,
    "optim.warmup_lr_per_sample": 4e-6,
    "optim.final_lr_per_sample": 1e-6 / 8,
}

# No flips: mirroring turns some classes into others. With the paper's color changes and small crops, a network this
# small learns nothing from so few videos.
_SMALL_FINETUNE = (
    _SMALL_MODEL
    | _DIRECTIONS
    | _FINETUNE
    | {
        "run.channels_last": True,
        "sampling.stride": 2,
        "augment.flip_probability": 0.0,
        "augment.crop_area": (0.7, 1.0),
        "augment.jitter_probability": 0.0,
        "augment.gray_probability": 0.0,
        "optim.optimizer": "adamw",
        "optim.lr_per_sample": 6e-5,
        "optim.weight_decay": 0.01,
        "optim.warmup_epochs": 2.0,
        "optim.batch_size": 16,
        "optim.epochs": 30,
    }
)

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # The paper's settings with the motion encoder at grid resolution.
    "ucf101": {},
    "hmdb51": {},
    "kinetics400": {"optim.batch_size": 512},
    # The paper's settings at full size with the additions that help the small networks; not run at this size so far.
    "ucf101-directions": _DIRECTIONS
    | {"model.shortcut": "average", "loss.context_weight": 0.1, "run.channels_last": True},
    # Short real gesture videos of 40 to 80 frames, seen by a moving camera.
    "gestures": _SMALL_MODEL
    | _DIRECTIONS
    | {
        "run.channels_last": True,
        "sampling.stride": 2,
        "augment.global_motion": "median",
        # As in ``demo``, where equal weights kept the network from learning motion (train/README.md).
        "loss.context_weight": 0.1,
        "augment.flip_probability": 0.0,
        "augment.crop_area": (0.5, 1.0),
        "augment.jitter_probability": 0.0,
        "augment.gray_probability": 0.0,
        "data.samples_per_video": 4,
        "optim.optimizer": "adamw",
        "optim.lr_per_sample": 6e-5,
        "optim.weight_decay": 0.01,
        "optim.warmup_epochs": 2.0,
        "optim.batch_size": 24,
        "optim.epochs": 40,
    },
    # The synthetic demo videos, a few minutes on two cores.
    "demo": _SMALL_MODEL
    | _DIRECTIONS
    | {
        "run.channels_last": True,
        "loss.context_weight": 0.1,
        "sampling.clip_frames": 8,
        "sampling.stride": 2,
        "augment.crop_area": (0.5, 1.0),
        "optim.optimizer": "adamw",
        "optim.lr_per_sample": 6e-5,
        "optim.weight_decay": 0.01,
        "optim.warmup_epochs": 2.0,
        "optim.batch_size": 16,
        "optim.epochs": 32,
        "data.workers": 1,
    },
    "finetune-ucf101": _PAPER_FINETUNE | {"optim.lr_per_sample": 1e-4, "optim.weight_decay": 3e-3},
    "finetune-hmdb51": _PAPER_FINETUNE | {"optim.lr_per_sample": 2e-4, "optim.weight_decay": 2e-3},
    # A class is the whole path of a hand: a clip spans nearly all of a video, which has 40 to 80 frames.
    "finetune-gestures": _SMALL_FINETUNE
    | {
        "augment.global_motion": "median",
        "data.samples_per_video": 4,
        "loss.motion_weight": 3.0,  # with --auxiliary motion; chosen on inner splits (eval/RESULTS.md)
    },
    "finetune-demo": _SMALL_FINETUNE | {"sampling.clip_frames": 8, "data.workers": 1},
}

AUXILIARY_MOTION: Mapping[str, Any] = {
    # Motion vectors follow the clip and are not rotated with it.
    "model.motion_head": True,
    "sampling.motion_room": True,
    "augment.rotation_degrees": 0.0,
}
"""Overrides that add motion prediction as an auxiliary loss to a fine-tuning recipe."""


def recipe_names(*, finetune: bool) -> list[str]:
    """List the recipes for fine-tuning, or those for pre-training."""
    return [name for name in RECIPES if name.startswith("finetune-") == finetune]


def check_recipe(name: str, *, finetune: bool) -> None:
    """Reject a recipe for the other command; ``build_config`` rejects unknown names.

    Raises:
        ValueError: the recipe belongs to the other command.
    """
    allowed = recipe_names(finetune=finetune)
    if name in RECIPES and name not in allowed:
        command = "finetune" if finetune else "pretrain"
        raise ValueError(f"recipe: {name!r} is not for cmd-train {command}; use one of {', '.join(allowed)}")


def complete_recipe(*, finetune: bool | None = None) -> Callable[[Any, Any, str], list[str]]:
    """Build a function for click's ``shell_complete`` that completes recipe names.

    Args:
        finetune: offer recipes for fine-tuning only, or for pre-training only; None offers all.
    """

    def complete(context: Any, parameter: Any, incomplete: str) -> list[str]:
        names = list(RECIPES) if finetune is None else recipe_names(finetune=finetune)
        return [name for name in names if name.startswith(incomplete)]

    return complete
