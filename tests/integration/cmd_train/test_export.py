"""`cmd-train export`: each format gives the same numbers as the backbone, and says what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from click.testing import Result
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import cmd_eval
import cmd_extract
import cmd_train
from cmd_eval.cli.main import main as eval_main
from cmd_train.cli.main import main
from cmd_train.export.card import _rows
from cmd_train.export.torchvision_names import check_torchvision, torchvision_name
from cmd_train.models.config import ModelConfig
from tests.command_line import call


def export(*arguments: object) -> Result:
    return call(main, "export", *arguments)


def clips(batch: int, crop: int = 32) -> Tensor:
    return torch.from_numpy(np.random.default_rng(batch).standard_normal((batch, 3, 8, crop, crop), np.float32))


def outputs(backbone: Callable[[Tensor], cmd_train.BackboneOutput], clip_BCTHW: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        output = backbone(clip_BCTHW)
    return [output.pooled_BC, output.feature_BCTHW, output.tokens_BCTHW]


@pytest.fixture(scope="module")
def exported(pretrained: Path, few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("export") / "run"
    run.symlink_to(pretrained)
    words = ("--split-column", "split", "--clips", 1, "--workers", 0, "--device", "cpu")
    result = call(eval_main, "retrieval", run, few_shards, *words, "--output", pretrained / "eval" / "retrieval.json")
    assert result.exit_code == 0, result.output
    result = export(run, run.parent / "out", "--license", "mit")
    assert result.exit_code == 0, result.output
    return run.parent / "out"


def test_exported_weights_are_read_back(exported: Path, pretrained: Path, few_shards: Path, tmp_path: Path) -> None:
    backbone = cmd_train.load_backbone(pretrained)
    weights = load_file(exported / "model.safetensors")
    assert weights.keys() == backbone.state_dict().keys(), "plain names"
    frames = cmd_extract.open_shards(few_shards).clip(0)
    expected = cmd_eval.load_model(pretrained).embed_array(frames, clips=2, device="cpu")
    for path in (exported, exported / "model.safetensors"):
        model = cmd_eval.load_model(path)
        assert np.array_equal(model.embed_array(frames, clips=2, device="cpu"), expected)
        assert model.extraction == cmd_eval.load_model(pretrained).extraction
    features = []
    for name, path in (("a", exported), ("b", pretrained)):
        words = ("--clips", 1, "--workers", 0, "--device", "cpu")
        result = call(eval_main, "embed", path, few_shards, tmp_path / f"{name}.h5", *words)
        assert result.exit_code == 0, result.output
        features.append(cmd_eval.read_features(tmp_path / f"{name}.h5"))
    assert np.array_equal(features[0].mean_VF, features[1].mean_VF)
    assert features[0].provenance.trained_on == features[1].provenance.trained_on is not None
    assert features[0].provenance.pretext == features[1].provenance.pretext != {}


def test_the_model_card_states_recipe_data_figures_and_license(
    exported: Path, pretrained: Path, tmp_path: Path
) -> None:
    assert sorted(path.name for path in exported.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    _, header, text = (exported / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "mit"
    checkpoint = cmd_train.load_checkpoint(pretrained)
    for words in ("recipe: demo", f"steps: {checkpoint.step}", checkpoint.config["data_hash"], "part train of split"):
        assert words in text
    result = json.loads((pretrained / "eval" / "retrieval.json").read_text())
    top = next(split for split in result["splits"] if split["target"] == "label")["recall"]["R@1"]["value"]
    assert f"| retrieval | readout mean, 1 clip, float32 | split, label | R@1 | {100 * top:.1f} (" in text
    # A fine-tuned network that does not know its training videos has no chance.
    provenance = {"checkpoint_sha256": "a", "untrained": False, "clips": 10, "precision": "bf16", "standardized": True}
    split = {"split_column": "split1", "top1": {"value": 0.5, "low": 0.4, "high": 0.6}, "chance": None}
    record = {"kind": "probe", "method": "knn", "provenance": provenance, "splits": [split | {"exclude_same": "group"}]}
    (tmp_path / "r.json").write_text(json.dumps(record))
    features = "readout mean, 10 clips, bf16, standardized"
    expected = f"| probe, knn | {features} | split1, label, without the same group | top-1 | 50.0 (40.0 to 60.0) | – |"  # noqa: RUF001 (dash)
    assert list(_rows(tmp_path / "r.json", "a")) == [expected]
    config = json.loads((exported / "config.json").read_text())
    assert config["settings"]["model"]["backbone"] == "r2plus1d_10"
    assert str(pretrained.parent) not in json.dumps(config) + text


def test_torchscript_gives_the_same_numbers(pretrained: Path, tmp_path: Path) -> None:
    result = export(pretrained, tmp_path / "out", "--format", "torchscript")
    assert result.exit_code == 0, result.output
    module = torch.jit.load(tmp_path / "out" / "model.pt")
    for batch in (1, 3):
        found = module(clips(batch))
        for value, expected in zip(found, outputs(cmd_train.load_backbone(pretrained), clips(batch)), strict=True):
            assert value.shape == expected.shape
            assert (value - expected).abs().max() <= 1e-4
    assert "torch.jit.load" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(cmd_train.CheckpointError, match="no checkpoint found"):
        cmd_eval.load_model(tmp_path / "out")


@pytest.mark.slow
def test_onnx_gives_the_same_numbers(pretrained: Path, tmp_path: Path) -> None:
    result = export(pretrained, tmp_path / "out", "--format", "onnx")
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        found = session.run(["pooled", "feature", "tokens"], {"clip": clips(batch).numpy()})
        for value, expected in zip(found, outputs(cmd_train.load_backbone(pretrained), clips(batch)), strict=True):
            assert value.shape == expected.shape
            assert np.abs(value - expected.numpy()).max() <= 1e-4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "config.json", "model.onnx"]


class TorchvisionBlock(nn.Module):
    """Written from torchvision's documentation of the bottleneck block: names and order, no code of this project."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Sequential(nn.Conv3d(channels, width, 1, bias=False), nn.BatchNorm3d(width), nn.ReLU())
        cube = nn.Conv3d(width, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Sequential(cube, nn.BatchNorm3d(width), nn.ReLU())
        self.conv3 = nn.Sequential(nn.Conv3d(width, out, 1, bias=False), nn.BatchNorm3d(out))
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv3d(channels, out, 1, stride, bias=False), nn.BatchNorm3d(out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        return torch.relu(self.conv3(self.conv2(self.conv1(x))) + shortcut)


class TorchvisionNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm3d(64), nn.ReLU(), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
        channels = 64
        for stage, width in enumerate((64, 128, 256, 512), start=1):
            blocks = [TorchvisionBlock(channels, width, 1 if stage == 1 else 2), TorchvisionBlock(4 * width, width, 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            channels = 4 * width

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x.mean((2, 3, 4))


def test_names_of_torchvision_give_the_same_network() -> None:
    torch.manual_seed(0)
    backbone = cmd_train.build_backbone("r3d_26").eval()
    for name, value in backbone.state_dict().items():
        if "norm" in name and value.is_floating_point():  # residual branches start at zero
            value.copy_(torch.rand_like(value) + 0.5)
    network = TorchvisionNet().eval()
    network.load_state_dict({torchvision_name(name): value for name, value in backbone.state_dict().items()})
    (expected, *_), found = outputs(backbone, clips(1)), network(clips(1)).detach()
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_names_of_torchvision_are_refused_with_the_reason(pretrained: Path, tmp_path: Path) -> None:
    result = export(pretrained, tmp_path / "out", "--names", "torchvision")
    assert result.exit_code == 1
    assert "torchvision cannot build this r2plus1d_10: torchvision's R(2+1)D has other channels" in result.output
    for config, words in (
        (ModelConfig(backbone="c3d"), "has no C3D"),
        (ModelConfig(backbone="r3d_26", shortcut="average"), "strided shortcuts only"),
        (ModelConfig(backbone="r3d_26", width=32), "has 64 channels, that of this network 32"),
    ):
        with pytest.raises(ValueError, match=words):
            check_torchvision(config)
    check_torchvision(ModelConfig(backbone="r3d_26"))
    result = export(pretrained, tmp_path / "out", "--names", "torchvision", "--format", "torchscript")
    assert "names: torchvision is for the format safetensors, not torchscript" in result.output
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_existing_folders_are_kept_and_published_files_accepted(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    backbone = cmd_train.build_backbone("r3d_26")
    published = json.loads((Path(__file__).parents[2] / "fixtures/parity/resnet26_3d_keys.json").read_text())
    save_file({name: torch.zeros(shape) for name, shape in published.items()}, tmp_path / "weights.safetensors")
    result = export(tmp_path / "weights.safetensors", tmp_path / "out")
    assert "already exists; choose another folder" in result.output
    result = export(tmp_path / "weights.safetensors", tmp_path / "new", "--names", "torchvision")
    assert result.exit_code == 0, result.output
    weights = load_file(tmp_path / "new" / "model.safetensors")
    assert weights.keys() == TorchvisionNet().state_dict().keys()
    assert sum(value.numel() for value in weights.values()) == sum(v.numel() for v in backbone.state_dict().values())
    assert "VideoResNet(Bottleneck" in (tmp_path / "new" / "README.md").read_text()
