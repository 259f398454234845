"""Config presets; ``cmd_train.config`` builds configurations from them, ``cmd_train.cli.recipes`` lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

_SMALL_MODEL = {
    "model.backbone": "r2plus1d_10",
    "model.width": 16,
    "model.encoder_width": 16,
    "model.crop_size": 56,
    "model.embedding_dim": 128,
    "model.head_hidden": 256,
    "model.predictor_width": 128,
    "model.predictor_heads": 4,
    "model.predictor_ff": 128,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
}

# What all trainings with labels share: a backbone and a classifier, clips anywhere in the video, no clipping.
_FINETUNE = {
    "model.context_head": False,
    "model.motion_head": False,
    "sampling.motion_room": False,
    "optim.clip_norm": 0.0,
}

# The paper's. Its final rate is said without "x global batch": 1e-6 at its batch of 8.
_PAPER_FINETUNE = _FINETUNE | {
    "augment.rotation_degrees": 10.0,
    "optim.batch_size": 8,
    "optim.epochs": 120,
    "optim.warmup_epochs": 10.0,
    "optim.warmup_lr_per_sample": 4e-6,
    "optim.final_lr_per_sample": 1e-6 / 8,
}

# Classes that a mirror image turns into one another: no flips. With the paper's changes of colour and small crops a
# network this small learns nothing from so few videos.
_SMALL_FINETUNE = (
    _SMALL_MODEL
    | _FINETUNE
    | {
        "sampling.stride": 2,
        "augment.flip_probability": 0.0,
        "augment.crop_area": (0.7, 1.0),
        "augment.jitter_probability": 0.0,
        "augment.grey_probability": 0.0,
        "optim.optimizer": "adamw",
        "optim.lr_per_sample": 6e-5,
        "optim.weight_decay": 0.01,
        "optim.warmup_epochs": 2.0,
        "optim.batch_size": 16,
        "optim.epochs": 30,
    }
)

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # The paper's, with the motion encoder at the grid's resolution.
    "ucf101": {},
    "hmdb51": {},
    "kinetics400": {"optim.batch_size": 512},
    # Short real clips of gestures: most have 40 to 80 frames, so that a clip spans all of most of them and the motion
    # to predict lies within it. Of moving positions only, told from candidates at the same place: with the paper's
    # candidates and so few samples the place is all that is learned (eval/README.md).
    "gestures": _SMALL_MODEL
    | {
        "sampling.stride": 4,
        "sampling.future_interval": -16,
        "loss.drop_static_px": 0.5,
        "loss.motion_own_place": True,
        "augment.flip_probability": 0.0,
        "augment.crop_area": (0.5, 1.0),
        "augment.jitter_probability": 0.0,
        "augment.grey_probability": 0.0,
        "data.samples_per_video": 4,
        "optim.optimizer": "adamw",
        "optim.lr_per_sample": 6e-5,
        "optim.weight_decay": 0.01,
        "optim.warmup_epochs": 2.0,
        "optim.batch_size": 24,
        "optim.epochs": 40,
    },
    # The embedded default: a few minutes on two cores, on the synthesized videos. AdamW gets past chance in the motion
    # task within 500 steps, where SGD does not.
    "demo": _SMALL_MODEL
    | {
        "sampling.clip_frames": 8,
        "sampling.stride": 2,
        "augment.crop_area": (0.5, 1.0),
        "optim.optimizer": "adamw",
        "optim.lr_per_sample": 6e-5,
        "optim.weight_decay": 0.01,
        "optim.warmup_epochs": 2.0,
        "optim.batch_size": 16,
        "optim.epochs": 42,
        "data.workers": 1,
    },
    "finetune-ucf101": _PAPER_FINETUNE | {"optim.lr_per_sample": 1e-4, "optim.weight_decay": 3e-3},
    "finetune-hmdb51": _PAPER_FINETUNE | {"optim.lr_per_sample": 2e-4, "optim.weight_decay": 2e-3},
    # A class is the hand's whole path: a clip spans all of most videos, which have 40 to 80 frames.
    "finetune-gestures": _SMALL_FINETUNE | {"sampling.stride": 4, "data.samples_per_video": 4},
    "finetune-demo": _SMALL_FINETUNE | {"sampling.clip_frames": 8, "data.workers": 1},
}

AUXILIARY_MOTION: Mapping[str, Any] = {
    # Vectors do not follow a rotation, and lie behind the clip.
    "model.motion_head": True,
    "sampling.motion_room": True,
    "augment.rotation_degrees": 0.0,
}
"""What motion prediction as an auxiliary loss changes in a recipe for fine-tuning."""


def recipe_names(*, finetune: bool) -> list[str]:
    """Names of the recipes for fine-tuning, or of those for pre-training."""
    return [name for name in RECIPES if name.startswith("finetune-") == finetune]


def check_recipe(name: str, *, finetune: bool) -> None:
    """Refuses a recipe of the other kind of training; unknown ones are refused where they are built.

    Raises:
        ValueError: names the recipes that are allowed.
    """
    allowed = recipe_names(finetune=finetune)
    if name in RECIPES and name not in allowed:
        command = "finetune" if finetune else "pretrain"
        raise ValueError(f"recipe: {name!r} is not for cmd-train {command}; need one of {', '.join(allowed)}")


def complete_recipe(*, finetune: bool | None = None) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """What a shell is told when it asks for the rest of a recipe's name; for the parameter's ``shell_complete``.

    Args:
        finetune: offer those for fine-tuning, or those for pre-training; None: all.
    """

    def names(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
        from cmd_train.recipes import RECIPES, recipe_names

        offered = list(RECIPES) if finetune is None else recipe_names(finetune=finetune)
        return [name for name in offered if name.startswith(begun)]

    return names
