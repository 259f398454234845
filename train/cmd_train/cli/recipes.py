"""The named recipes as text: what each is for and in what it differs from the paper's settings."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from cmd_train.config import TrainConfig, build_config
from cmd_train.recipes import RECIPES, recipe_names

_LINE_CHARACTERS = 100
_NO_BREAK = "\N{NO-BREAK SPACE}"

NOTES: Mapping[str, str] = {
    "ucf101": "the paper's pre-training on UCF101, with the motion encoder at the grid's resolution",
    "hmdb51": "pre-training for HMDB51: as published, the ucf101 recipe unchanged",
    "kinetics400": "the paper's pre-training on Kinetics-400",
    "gestures": "a small network for short real clips of gestures",
    "demo": "a small network for the synthesized videos: minutes on two cores",
    "finetune-ucf101": "the paper's fine-tuning on UCF101",
    "finetune-hmdb51": "the paper's fine-tuning on HMDB51",
    "finetune-gestures": "with labels: the small network for short real clips of gestures",
    "finetune-demo": "with labels: the small network for the synthesized videos",
}


def check_recipe(name: str, *, finetune: bool) -> None:
    """Refuses a recipe of the other kind of training; unknown ones are refused where they are built.

    Raises:
        ValueError: names the recipes that are allowed.
    """
    allowed = recipe_names(finetune=finetune)
    if name in RECIPES and name not in allowed:
        command = "finetune" if finetune else "pretrain"
        raise ValueError(f"recipe: {name!r} is not for cmd-train {command}; need one of {', '.join(allowed)}")


def check_finetuning(config: TrainConfig) -> None:
    """Refuses settings that fine-tuning cannot follow.

    Raises:
        ValueError: the context head is on, or clips are to be rotated away from their motion.
    """
    if config.model.context_head:
        raise ValueError("model.context_head: True is not allowed in fine-tuning, which has no context loss")
    if config.model.motion_head and config.augment.rotation_degrees > 0:
        raise ValueError(
            f"augment.rotation_degrees: {config.augment.rotation_degrees} is not allowed with --auxiliary motion, "
            "need 0: vectors do not follow a rotation"
        )


def list_recipes() -> str:
    """Each recipe's name, what it is for, and below it the fields in which it differs from the paper's settings."""
    width = max(map(len, RECIPES)) + 2
    margin = " " * width
    told = []
    for name in RECIPES:
        told.append(f"{name:{width}}{NOTES[name]}")
        # A field and its value stay on one line.
        fields = ", ".join(field.replace(" ", _NO_BREAK) for field in _differences(name))
        lines = textwrap.wrap(fields, _LINE_CHARACTERS - width, break_long_words=False, break_on_hyphens=False)
        told += [margin + line.replace(_NO_BREAK, " ") for line in lines]
    return "\n".join(told)


def _differences(name: str) -> list[str]:
    paper, own = TrainConfig().as_dict(), build_config(name).as_dict()
    return [
        f"{section}.{field}={value}"
        for section, values in own.items()
        for field, value in values.items()
        if value != paper[section][field]
    ]
