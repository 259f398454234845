from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from torch import nn

from cmd_train.checkpoints.files import (
    CheckpointError,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from cmd_train.cli.main import main
from cmd_train.cli.recipes import NOTES
from cmd_train.config import OptimConfig, TrainConfig, build_config, changed_fields, config_from_dict, parse_overrides
from cmd_train.engine.optim import build_optimizer, learning_rate
from cmd_train.monitoring.neighbours import nearest
from cmd_train.recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_survive_json(recipe: str) -> None:
    config = build_config(recipe)
    assert config_from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_recipes_print_themselves() -> None:
    listed = CliRunner().invoke(main, ["recipes"])
    assert listed.exit_code == 0, listed.output
    assert all(len(line) <= 110 and line.isascii() for line in listed.output.splitlines())
    # A line that begins with a name begins a recipe.
    told = {part.split()[0]: " ".join(part.split()[1:]) for part in re.split(r"\n(?=\S)", listed.output)}
    assert told.keys() == RECIPES.keys() == NOTES.keys()
    assert told["kinetics400"] == f"{NOTES['kinetics400']} optim.batch_size=512"
    assert "=" not in told["ucf101"]
    for recipe, text in told.items():
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


def test_papers_recipe() -> None:
    config = build_config("ucf101")
    assert (config.optim.batch_size, config.optim.epochs, config.optim.lr_per_sample) == (64, 120, 5e-4)
    assert (config.sampling.clip_frames, config.sampling.stride, config.model.backbone) == (16, 4, "r2plus1d_26")


def test_every_number_of_the_papers_optimisation() -> None:
    optim = build_config("ucf101").optim
    published = {
        "optimizer": "sgd", "batch_size": 64, "epochs": 120, "lr_per_sample": 5e-4, "warmup_epochs": 5.0,
        "warmup_lr_per_sample": 5e-6, "final_lr_per_sample": 0.0, "momentum": 0.9, "weight_decay": 1e-3,
        "clip_norm": 15.0,
    }  # fmt: skip
    assert {name: getattr(optim, name) for name in published} == published
    group = build_optimizer(nn.Linear(2, 2), optim).param_groups[0]
    assert (group["nesterov"], group["momentum"]) == (True, 0.9)
    loss = build_config("ucf101").loss
    assert (loss.temperature, loss.context_weight, loss.motion_weight, loss.symmetric) == (0.1, 1.0, 1.0, False)
    assert build_config("hmdb51") == build_config("ucf101")
    assert build_config("kinetics400") == build_config("ucf101", {"optim.batch_size": 512})


@pytest.mark.parametrize("pair", ["optim.lr_per_sample=Infinity", "loss.temperature=NaN", 'optim.weight_decay="a"'])
def test_numbers_must_be_finite_numbers(pair: str) -> None:
    with pytest.raises(ValueError, match=pair.partition("=")[0]):
        parse_overrides([pair])


def test_settings_are_printed_without_data() -> None:
    result = CliRunner().invoke(main, ["pretrain", "--recipe", "hmdb51", "--print-config", "--set", "optim.epochs=3"])
    assert result.exit_code == 0, result.output
    assert config_from_dict(json.loads(result.output)) == build_config("hmdb51", {"optim.epochs": 3})
    assert CliRunner().invoke(main, ["pretrain", "--recipe", "hmdb51"]).exit_code == 2


def test_overrides_reach_every_section_that_shares_a_knob() -> None:
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
def test_bad_overrides_are_named(pair: str) -> None:
    with pytest.raises(ValueError, match=pair.partition("=")[0].rpartition(".")[2]):
        build_config("demo", parse_overrides([pair]))


def test_disagreeing_sections_are_refused() -> None:
    config = TrainConfig()
    from dataclasses import replace

    with pytest.raises(ValueError, match="crop_size"):
        replace(config, model=replace(config.model, crop_size=64))


def test_changed_fields_are_told() -> None:
    before = json.loads(json.dumps(build_config("demo").as_dict()))
    after = build_config("demo", {"optim.epochs": 99})
    assert changed_fields(before, build_config("demo").as_dict()) == []
    (change,) = changed_fields(before, after.as_dict())
    assert change.startswith("optim.epochs")


def test_learning_rate_schedule() -> None:
    config = OptimConfig(batch_size=10, epochs=20, warmup_epochs=5, final_lr_per_sample=1e-6)
    rates = [learning_rate(step, 8, config) for step in range(161)]
    assert rates[0] == pytest.approx(5e-6 * 10)
    assert rates[40] == pytest.approx(5e-4 * 10)
    assert rates[20] == pytest.approx((5e-6 + 5e-4) / 2 * 10)
    assert rates[100] == pytest.approx((5e-4 + 1e-6) / 2 * 10)
    assert rates[160] == pytest.approx(1e-6 * 10)
    assert all(a < b for a, b in itertools.pairwise(rates[:41])), "warm-up"
    assert all(a > b for a, b in itertools.pairwise(rates[40:])), "cosine"


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_optimizer_choice(name: str, kind: type) -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(optimizer=name))
    assert isinstance(optimizer, kind)
    assert optimizer.param_groups[0]["weight_decay"] == 1e-3


def save(run_dir: Path, step: int) -> Path:
    weights = {"w": torch.full((2, 3), float(step)), "n": torch.tensor(step)}
    return save_checkpoint(run_dir, step=step, weights=weights, state={"step": step}, config={"a": {"b": 1}})


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    save(tmp_path, 5)
    path = save(tmp_path, 12)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.path == path == find_checkpoint(path)
    assert checkpoint.step == 12
    assert checkpoint.config == {"a": {"b": 1}}
    assert torch.equal(checkpoint.weights["w"], torch.full((2, 3), 12.0))
    assert checkpoint.load_state() == {"step": 12}
    with safe_open(path / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["config"]) == {"a": {"b": 1}}


def test_checkpoints_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 2)
    assert load_checkpoint(tmp_path).step == 1
    monkeypatch.undo()
    for step in (3, 4):
        save(tmp_path, step)
    prune_checkpoints(tmp_path, 2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2, "what the failed save left is gone"


def test_missing_and_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path)
    path = save(tmp_path, 1)
    (path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="step-00000001"):
        load_checkpoint(tmp_path)


def test_nearest_matches_a_full_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmd_train.monitoring.neighbours._QUERY_BLOCK", 7)
    monkeypatch.setattr("cmd_train.monitoring.neighbours._GALLERY_BLOCK", 13)
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(20, 5, generator=generator), torch.randn(50, 5, generator=generator)
    similarity, rows = nearest(query, gallery, 9)
    full = nn.functional.cosine_similarity(query[:, None], gallery[None], dim=2)
    expected = full.sort(dim=1, descending=True)
    torch.testing.assert_close(similarity, expected.values[:, :9])
    assert torch.equal(rows, expected.indices[:, :9])


def test_nearest_lists_equals_by_row_and_checks_counts() -> None:
    gallery = torch.ones(6, 2)
    assert nearest(torch.ones(1, 2), gallery, 6)[1].tolist() == [[0, 1, 2, 3, 4, 5]]
    with pytest.raises(ValueError, match="count: 7"):
        nearest(torch.ones(1, 2), gallery, 7)
    with pytest.raises(ValueError, match="3 features"):
        nearest(torch.ones(1, 2), torch.ones(6, 3), 1)
