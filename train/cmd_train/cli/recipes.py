"""The named recipes as text: what each is for and in what it differs from the paper's settings."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from cmd_train.config import TrainConfig, build_config
from cmd_train.recipes import RECIPES

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
