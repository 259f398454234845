"""The named recipes as text: what each is for and in what it differs from the paper's settings."""

from __future__ import annotations

from collections.abc import Mapping

from train.config import RECIPES, TrainConfig, build_config

NOTES: Mapping[str, str] = {
    "ucf101": "the paper's pre-training on UCF101, with the motion encoder at the grid's resolution",
    "hmdb51": "pre-training for HMDB51: as published, the ucf101 recipe unchanged",
    "kinetics400": "the paper's pre-training on Kinetics-400",
    "gestures": "a small network for short real clips of gestures",
    "demo": "a small network for the synthesized videos: minutes on two cores",
}


def list_recipes() -> str:
    """One line a recipe: its name, what it is for, and the fields in which it differs from the paper's settings."""
    width = max(map(len, RECIPES))
    return "\n".join(f"{name:{width}}  {NOTES[name]}{_differences(name)}" for name in RECIPES)


def _differences(name: str) -> str:
    paper, own = TrainConfig().as_dict(), build_config(name).as_dict()
    changed = [
        f"{section}.{field}={value}"
        for section, values in own.items()
        for field, value in values.items()
        if value != paper[section][field]
    ]
    return f" ({', '.join(changed)})" if changed else ""
