"""Initial weights: published weights imported by the command line, and checkpoints of this project."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from cmd_train.checkpoints.files import load_checkpoint, save_checkpoint
from cmd_train.checkpoints.initial import detect_network, load_initial
from cmd_train.checkpoints.published import published_name, read_weights_file
from cmd_train.cli.main import main
from cmd_train.config import config_from_dict
from cmd_train.models.backbones import build_backbone
from cmd_train.models.build import build_model
from cmd_train.models.pretrain import PretrainModel
from tests.paths import ROOT
from tests.unit.cmd_train.models.test_parity import (
    as_published,
    assert_equal_states,
    assert_same,
    expected_outputs,
    published_input,
    published_state,
    small_model,
)


def import_weights(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["import-weights", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def load_model(folder: Path) -> PretrainModel:
    checkpoint = load_checkpoint(folder)
    config = config_from_dict(checkpoint.config["settings"])
    model = build_model(config.model, seed=config.run.seed)
    model.load_state_dict(checkpoint.weights)
    return model.eval()


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "published"), [("c3d", "C3D"), ("r3d_26", "resnet26_3d"), ("r2plus1d_26", "resnet26_2p1d")]
)
def test_imported_backbone_gives_the_published_features(name: str, published: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(published_state(published), file)
    result = import_weights(file, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"backbone with {name}" in result.output
    model = load_model(tmp_path / "out")
    assert [part for part, _ in model.named_children()] == ["backbone"]
    assert_same(model.backbone(published_input(0, 1, 3, 16, 112, 112)).pooled_BC, expected_outputs(published)["pooled"])


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "published"), [("r3d_26", "pretrain_resnet26_3d"), ("r2plus1d_26", "pretrain_resnet26_2p1d")]
)
def test_imported_network_gives_the_published_embeddings(name: str, published: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    state = {f"module.{key}": tensor for key, tensor in published_state(published).items()}
    torch.save({"state_dict": state, "epoch": 119}, file)
    result = import_weights(file, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"pre-training network with {name}" in result.output
    output = load_model(tmp_path / "out")(
        published_input(1, 1, 3, 16, 112, 112),
        published_input(3, 1, 3, 1, 112, 112),
        published_input(2, 4, 2, 8, 112, 112)[None],
    )
    expected = expected_outputs(published)
    assert_same(output.context_query_BD, expected["context_query"])
    assert_same(output.context_key_BD, expected["context_key"])
    assert_same(output.motion_query_BPD, expected["motion_query"])
    assert_same(output.motion_key_BWPD, expected["motion_key"])
    record = load_checkpoint(tmp_path / "out").config["imported"]
    assert (record["source"], record["part"], len(record["sha256"])) == (str(file), "all", 64)


def small_file(folder: Path, **changes: torch.Tensor) -> Path:
    state = {name: t for name, t in as_published(small_model(1)).items() if name.startswith("rgb_backbone.")}
    file = folder / "small.pth"
    torch.save(state | changes, file)
    return file


def test_errors_list_mismatched_names_and_nothing_is_written(tmp_path: Path) -> None:
    wrong = small_file(tmp_path, **{"rgb_backbone.surplus": torch.zeros(1)})
    result = import_weights(wrong, tmp_path / "out", "--set", "model.width=4")
    assert result.exit_code == 1
    assert "unexpected: surplus" in result.output
    result = import_weights(wrong, tmp_path / "out", "--backbone", "c3d", "--init-part", "backbone")
    assert "missing: bn1.bias" in result.output
    assert "unexpected: " in result.output
    (tmp_path / "noise.pth").write_bytes(b"no weights")
    result = import_weights(tmp_path / "noise.pth", tmp_path / "out")
    assert result.exit_code == 1
    assert "noise.pth: not a readable" in result.output
    assert "weights_only" not in result.output, "torch's advice to run code in the file"
    torch.save({"a.weight": torch.zeros(1), "b.weight": torch.zeros(1)}, tmp_path / "other.pth")
    result = import_weights(tmp_path / "other.pth", tmp_path / "out")
    assert result.exit_code == 1
    assert "a.weight, b.weight" in result.output
    assert not (tmp_path / "out").exists()


def test_import_rejects_a_folder_with_checkpoints(tmp_path: Path) -> None:
    file = small_file(tmp_path)
    for code, words in ((0, "backbone with r2plus1d_10"), (1, "already contains checkpoints")):
        result = import_weights(file, tmp_path / "out", "--set", "model.width=4")
        assert result.exit_code == code, result.output
        assert words in result.output


@pytest.mark.parametrize("name", ["c3d", "r3d_26", "r2plus1d_26", "r2plus1d_10"])
@pytest.mark.parametrize("prefix", ["", "module.", "rgb_backbone.", "module.rgb_backbone."])
def test_networks_are_inferred_from_parameter_names(name: str, prefix: str) -> None:
    with torch.device("meta"):
        state = {prefix + published_name(own): t for own, t in build_backbone(name).state_dict().items()}
    found = detect_network(state)
    assert (found.backbone, found.complete) == (name, False)


@pytest.mark.parametrize("layout", ["moco", "mmaction", "model_state_dict", "net"])
def test_backbones_are_imported_from_larger_files(layout: str, tmp_path: Path) -> None:
    weights = {name.removeprefix("rgb_backbone."): t for name, t in torch.load(small_file(tmp_path)).items()}
    zero, other = torch.zeros(3), {name: tensor + 1 for name, tensor in weights.items()}
    content: dict[str, object]
    if layout == "moco":
        pairs = (("encoder_q", weights | {"fc.0.weight": zero}), ("encoder_k", other))
        state = {f"module.{part}.{name}": t for part, tensors in pairs for name, t in tensors.items()}
        content = {"state_dict": state | {"module.queue": zero, "module.queue_ptr": zero}, "arch": "r3d", "epoch": 3}
    elif layout == "mmaction":
        state = {f"backbone.{name}": tensor for name, tensor in weights.items()}
        content = {"state_dict": state | {"cls_head.fc_cls.weight": zero}, "meta": {}}
    else:
        content = {layout: weights, "epoch": 3}
    torch.save(content, tmp_path / "file.pth")
    result = import_weights(tmp_path / "file.pth", tmp_path / "out", "--set", "model.width=4")
    assert result.exit_code == 0, result.output
    assert "backbone with r2plus1d_10" in result.output
    assert ("others ignored" in result.output) == (layout in ("moco", "mmaction"))
    assert_equal_states(load_model(tmp_path / "out").backbone, small_model(1).backbone)


class _Settings:
    """Any class that torch does not load."""


def test_other_objects_are_named_with_a_way_out(tmp_path: Path) -> None:
    weights = torch.load(small_file(tmp_path))
    file = tmp_path / "objects.pth"
    torch.save({"state_dict": weights, "args": _Settings()}, file)
    result = import_weights(file, tmp_path / "out", "--set", "model.width=4")
    assert result.exit_code == 1
    assert f"contains objects other than tensors ({__name__}._Settings)" in result.output
    # The printed command makes a file that can be imported.
    command = result.output.partition('python -c "')[2].partition('"')[0]
    subprocess.run(
        [sys.executable, "-c", command], cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    result = import_weights(tmp_path / "weights.pth", tmp_path / "out", "--set", "model.width=4")
    assert result.exit_code == 0, result.output


def own_checkpoint(folder: Path, model: PretrainModel) -> Path:
    return save_checkpoint(folder, step=7, weights=model.state_dict(), state={}, config={})


@pytest.mark.parametrize("form", ["run", "checkpoint", "file", "renamed", "renamed.bin"])
@pytest.mark.parametrize("part", ["auto", "all", "backbone"])
def test_initial_weights_from_a_checkpoint(form: str, part: str, tmp_path: Path) -> None:
    source, target, untouched = small_model(1), small_model(2), small_model(2)
    folder = own_checkpoint(tmp_path, source)
    path = {"run": tmp_path, "checkpoint": folder, "file": folder / "model.safetensors"}.get(form)
    if path is None:
        path = tmp_path / f"{form}.safetensors" if form == "renamed" else tmp_path / form
        (folder / "model.safetensors").rename(path)
    record = load_initial(target, path, part)
    assert record["part"] == ("backbone" if part == "backbone" else "all")
    assert_equal_states(target.backbone, source.backbone)
    assert_equal_states(target.motion, untouched.motion if part == "backbone" else source.motion)


def test_initial_weights_from_a_published_file(tmp_path: Path) -> None:
    source, target, untouched = small_model(1), small_model(2), small_model(2)
    assert load_initial(target, small_file(tmp_path))["part"] == "backbone"
    assert_equal_states(target.backbone, source.backbone)
    assert_equal_states(target.motion, untouched.motion)
    torch.save(as_published(source), tmp_path / "whole.pth")
    assert load_initial(target, tmp_path / "whole.pth")["part"] == "all"
    assert_equal_states(target, source)
    with pytest.raises(ValueError, match=r"(?s)whole.pth: .*m_backbone.project.*different shape.*--init-part backbone"):
        load_initial(PretrainModel(replace(target.config, motion_input="native")), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"different shape") as error:
        load_initial(PretrainModel(replace(target.config, width=8)), small_file(tmp_path))
    assert "--init-part" not in str(error.value), "it would not help"


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"id,path\n1,2\n", b"\x80\x02cposix\nsystem\n"])
def test_errors_name_unreadable_files_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as error:
        read_weights_file(tmp_path / name)
    assert "\n" not in str(error.value)


def test_errors_of_unusable_sources_list_the_alternatives(tmp_path: Path) -> None:
    strange = tmp_path / "strange.safetensors"
    save_file({"a.weight": torch.zeros(1), "b.weight": torch.zeros(1)}, strange, metadata={"format": "pt"})
    (tmp_path / "notes.txt").write_text("no weights")
    state = own_checkpoint(tmp_path, small_model(1)) / "state.pt"
    torch.save({"optimizer": {}, "step": 3}, state)
    for path, why in ((strange, "a.weight, b.weight"), (tmp_path / "notes.txt", "not a readable"), (state, "step")):
        with pytest.raises(ValueError, match=rf"{path.name}.*{why}|{why}.*{path.name}") as error:
            load_initial(small_model(2), path)
        assert "give a run folder, a checkpoint or its weights file, or a published" in str(error.value)
        assert "\n" not in str(error.value)
