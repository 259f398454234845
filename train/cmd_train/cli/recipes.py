"""The list of recipes: what each is for, and how it differs from the paper's settings."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from cmd_train.config import TrainConfig, build_config
from cmd_train.recipes import RECIPES

_LINE_CHARACTERS = 100
_NO_BREAK = "\N{NO-BREAK SPACE}"

NOTES: Mapping[str, str] = {
    "ucf101": "the paper's pre-training on UCF101, with the motion encoder at grid resolution",
    "hmdb51": "pre-training on HMDB51; the same settings as ucf101, as published",
    "kinetics400": "the paper's pre-training on Kinetics-400",
    "ucf101-directions": "ucf101 with average shortcuts and prediction of motion directions; not run yet",
    "gestures": "a small network for short real gesture videos",
    "demo": "a small network for the synthetic demo videos; takes minutes on two cores",
    "finetune-ucf101": "the paper's fine-tuning on UCF101",
    "finetune-hmdb51": "the paper's fine-tuning on HMDB51",
    "finetune-gestures": "fine-tuning of the small network on short real gesture videos",
    "finetune-demo": "fine-tuning of the small network on the synthetic demo videos",
}


def list_recipes() -> str:
    """Return each recipe with its purpose and the settings in which it differs from the paper."""
    width = max(map(len, RECIPES)) + 2
    margin = " " * width
    lines = []
    for name in RECIPES:
        lines.append(f"{name:{width}}{NOTES[name]}")
        # Keep a setting and its value on one line.
        settings = ", ".join(setting.replace(" ", _NO_BREAK) for setting in _differences(name))
        wrapped = textwrap.wrap(settings, _LINE_CHARACTERS - width, break_long_words=False, break_on_hyphens=False)
        lines += [margin + line.replace(_NO_BREAK, " ") for line in wrapped]
    return "\n".join(lines)


def _differences(name: str) -> list[str]:
    paper, own = TrainConfig().as_dict(), build_config(name).as_dict()
    return [
        f"{section}.{field}={value}"
        for section, values in own.items()
        for field, value in values.items()
        if value != paper[section][field]
    ]
