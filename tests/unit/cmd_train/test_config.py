from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner
from torch import nn

from cmd_train.cli.main import main
from cmd_train.cli.recipes import NOTES
from cmd_train.config import TrainConfig, build_config, changed_fields, config_from_dict, parse_overrides
from cmd_train.engine.optim import build_optimizer
from cmd_train.recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_round_trip_through_json(recipe: str) -> None:
    config = build_config(recipe)
    assert config_from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_recipes_command_lists_and_prints_recipes() -> None:
    listed = CliRunner().invoke(main, ["recipes"])
    assert listed.exit_code == 0, listed.output
    assert all(len(line) <= 110 and line.isascii() for line in listed.output.splitlines())
    # An unindented line starts a recipe.
    notes = {part.split()[0]: " ".join(part.split()[1:]) for part in re.split(r"\n(?=\S)", listed.output)}
    assert notes.keys() == RECIPES.keys() == NOTES.keys()
    assert notes["kinetics400"] == f"{NOTES['kinetics400']} optim.batch_size=512"
    assert "=" not in notes["ucf101"]
    for recipe, text in notes.items():
        named = dict(item.split("=", 1) for item in re.findall(r"\w+\.\w+=(?:\([^)]*\)|[^,\s]+)", text))
        values = build_config(recipe).as_dict()
        for path, value in named.items():
            section, field = path.split(".")
            assert str(values[section][field]) == value
    for recipe in RECIPES:
        printed = CliRunner().invoke(main, ["recipes", recipe])
        assert config_from_dict(json.loads(printed.output)) == build_config(recipe)
    assert build_config("hmdb51") == build_config("ucf101")
    assert CliRunner().invoke(main, ["recipes", "imagenet"]).exit_code == 1


def test_every_field_can_be_set() -> None:
    for name, value in ((f"{s}.{f}", v) for s, fields in TrainConfig().as_dict().items() for f, v in fields.items()):
        text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
        assert build_config("ucf101", parse_overrides([f"{name}={text}"])) == build_config("ucf101"), name


def test_ucf101_recipe_is_the_papers() -> None:
    config = build_config("ucf101")
    assert (config.sampling.clip_frames, config.sampling.stride, config.model.backbone) == (16, 4, "r2plus1d_26")
    optim, loss = config.optim, config.loss
    published = {
        "optimizer": "sgd", "batch_size": 64, "epochs": 120, "lr_per_sample": 5e-4, "warmup_epochs": 5.0,
        "warmup_lr_per_sample": 5e-6, "final_lr_per_sample": 0.0, "momentum": 0.9, "weight_decay": 1e-3,
        "clip_norm": 15.0,
    }  # fmt: skip
    assert {name: getattr(optim, name) for name in published} == published
    group = build_optimizer(nn.Linear(2, 2), optim).param_groups[0]
    assert (group["nesterov"], group["momentum"]) == (True, 0.9)
    assert (loss.temperature, loss.context_weight, loss.motion_weight) == (0.1, 1.0, 1.0)
    assert build_config("kinetics400") == build_config("ucf101", {"optim.batch_size": 512})


@pytest.mark.parametrize("pair", ["optim.lr_per_sample=Infinity", "loss.temperature=NaN", 'optim.weight_decay="a"'])
def test_numbers_must_be_finite(pair: str) -> None:
    with pytest.raises(ValueError, match=pair.partition("=")[0]):
        parse_overrides([pair])


def test_print_config_needs_no_shards() -> None:
    result = CliRunner().invoke(main, ["pretrain", "--recipe", "hmdb51", "--print-config", "--set", "optim.epochs=3"])
    assert result.exit_code == 0, result.output
    assert config_from_dict(json.loads(result.output)) == build_config("hmdb51", {"optim.epochs": 3})
    assert CliRunner().invoke(main, ["pretrain", "--recipe", "hmdb51"]).exit_code == 2


def test_overrides_of_shared_fields_set_both_sections() -> None:
    config = build_config("ucf101", parse_overrides(["model.crop_size=64", "augment.crop_area=[0.5, 1]"]))
    assert (config.model.crop_size, config.augment.crop_size) == (64, 64)
    assert config.augment.crop_area == (0.5, 1)
    assert build_config("ucf101", parse_overrides(["data.split_column=none"])).data.split_column is None


@pytest.mark.parametrize(
    "pair",
    ["model.crop_size", "model.crop=64", "nothing.at=1", "model.crop_size=big", "model.crop_size=1.5",
     "optim.batch_size=true", "model.context_head=1", "model.backbone=resnet", "run.precision=float16",
     "optim.lr_per_sample=-1", "model.crop_size=57"],
)  # fmt: skip
def test_errors_name_invalid_overrides(pair: str) -> None:
    with pytest.raises(ValueError, match=pair.partition("=")[0].rpartition(".")[2]):
        build_config("demo", parse_overrides([pair]))


def test_sections_with_different_shared_fields_are_rejected() -> None:
    config = TrainConfig()
    with pytest.raises(ValueError, match="crop_size"):
        replace(config, model=replace(config.model, crop_size=64))


def test_changed_fields_are_listed() -> None:
    before = json.loads(json.dumps(build_config("demo").as_dict()))
    after = build_config("demo", {"optim.epochs": 99})
    assert changed_fields(before, build_config("demo").as_dict()) == []
    (change,) = changed_fields(before, after.as_dict())
    assert change.startswith("optim.epochs")


def test_contradictory_video_selection_is_rejected() -> None:
    assert build_config("demo", {"data.all_videos": True}).data.split_column is None
    with pytest.raises(ValueError, match=r"data\.all_videos: contradicts split_column='split1'"):
        build_config("demo", {"data.all_videos": True, "data.split_column": "split1"})
