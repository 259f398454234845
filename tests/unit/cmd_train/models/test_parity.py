"""Parity with the authors' published networks: same names, shapes and outputs (see fixtures/parity/README.md)."""

import json
import math
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cmd_train.checkpoints.published import load_published, published_name, read_weights_file
from cmd_train.models.backbones import build_backbone
from cmd_train.models.config import ModelConfig
from cmd_train.models.pretrain import PretrainModel
from tests.paths import FIXTURES

PARITY = FIXTURES / "parity"
TOLERANCE = 1e-4


def published_tensor(name: str, shape: list[int]) -> Tensor:
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("running_var"):
        values = 0.5 + generator.random(shape)
    elif name.endswith("running_mean") or (len(shape) == 1 and name.endswith("bias")):
        values = 0.1 * generator.standard_normal(shape)
    elif len(shape) == 1:
        values = 1 + 0.1 * generator.standard_normal(shape)
    else:
        values = generator.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    return torch.tensor(values, dtype=torch.float32)


def published_state(network: str) -> dict[str, Tensor]:
    shapes = json.loads((PARITY / f"{network}_keys.json").read_text())
    return {name: published_tensor(name, shape) for name, shape in shapes.items()}


def published_input(seed: int, *shape: int) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape), dtype=torch.float32)


def assert_same(ours: Tensor, expected: dict) -> None:
    flat = ours.flatten().double().numpy()
    assert flat.size == expected["size"]
    values = np.array(expected["values"])
    difference = np.abs(flat[expected["indices"]] - values).max() / np.abs(values).max()
    assert difference < TOLERANCE
    assert np.linalg.norm(flat) == pytest.approx(expected["norm"], rel=TOLERANCE)
    # A mean near zero is only as precise as the values that cancel in it.
    assert flat.mean() == pytest.approx(expected["mean"], abs=TOLERANCE * expected["norm"] / math.sqrt(flat.size))


def expected_outputs(network: str) -> dict:
    return json.loads((PARITY / "outputs.json").read_text())[network]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(
    ("name", "published"), [("c3d", "C3D"), ("r3d_26", "resnet26_3d"), ("r2plus1d_26", "resnet26_2p1d")]
)
def test_backbone_reproduces_the_published_feature(name, published):
    backbone = build_backbone(name).eval()
    load_published(backbone, published_state(published))
    feature_BC = backbone(published_input(0, 1, 3, 16, 112, 112)).pooled_BC
    expected = expected_outputs(published)
    assert list(feature_BC.shape) == expected["pooled_shape"]
    assert_same(feature_BC, expected["pooled"])


@pytest.mark.parametrize(
    ("name", "published"), [("r3d_26", "pretrain_resnet26_3d"), ("r2plus1d_26", "pretrain_resnet26_2p1d")]
)
def test_pretraining_network_reproduces_the_published_embeddings(name, published):
    model = PretrainModel(ModelConfig(backbone=name, motion_input="paper")).eval()
    load_published(model, published_state(published))
    output = model(
        published_input(1, 1, 3, 16, 112, 112),
        published_input(3, 1, 3, 1, 112, 112),
        published_input(2, 4, 2, 8, 112, 112)[None],
    )
    expected = expected_outputs(published)
    assert_same(output.context_query_BD, expected["context_query"])
    assert_same(output.context_key_BD, expected["context_key"])
    assert_same(output.motion_query_BPD, expected["motion_query"])
    assert_same(output.motion_key_BWPD, expected["motion_key"])


# Import of weights into small networks.


def small_model(seed: int) -> PretrainModel:
    torch.manual_seed(seed)
    return PretrainModel(
        ModelConfig(
            backbone="r2plus1d_10",
            width=4,
            motion_input="paper",
            clip_frames=8,
            crop_size=32,
            embedding_dim=8,
            head_hidden=8,
            predictor_width=8,
            predictor_heads=2,
            predictor_ff=8,
            encoder_layers=1,
            decoder_layers=1,
            encoder_width=4,
        )
    )


def as_published(model: PretrainModel) -> dict[str, Tensor]:
    state = {}
    for name, tensor in model.state_dict().items():
        theirs = published_name(name)
        convolution = "_head." in theirs and tensor.ndim == 2
        state[theirs] = tensor[:, :, None] if convolution else tensor
    return state


def assert_equal_states(ours: nn.Module, other: nn.Module) -> None:
    expected = other.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("prefix", ["", "module.", "model.module."])
def test_names_may_carry_a_common_prefix(prefix):
    source, target = small_model(1), small_model(2)
    load_published(target, {prefix + name: tensor for name, tensor in as_published(source).items()})
    assert_equal_states(target, source)


@pytest.mark.parametrize("keep", ["whole", "prefixed", "bare"])
def test_a_backbone_loads_its_part_of_the_weights(keep):
    source, target = small_model(1), small_model(2)
    state = as_published(source)
    if keep != "whole":
        state = {name: tensor for name, tensor in state.items() if name.startswith("rgb_backbone.")}
    if keep == "bare":
        state = {name.removeprefix("rgb_backbone."): tensor for name, tensor in state.items()}
    load_published(target.backbone, state)
    assert_equal_states(target.backbone, source.backbone)
    assert not torch.equal(target.motion.predictor.project.weight, source.motion.predictor.project.weight)


def test_mismatches_are_listed_and_leave_the_model_unchanged():
    target, untouched = small_model(2), small_model(2)
    state = as_published(small_model(1))
    del state["m_backbone.bn1.weight"]
    state["classifier.weight"] = torch.zeros(3)
    state["fc.weight"] = torch.zeros(8, 5)
    with pytest.raises(ValueError, match="do not fit") as error:
        load_published(target, state)
    for part in ("missing: m_backbone.bn1.weight;", "unexpected: classifier.weight;", "fc.weight (8, 5) instead of"):
        assert part in str(error.value)
    assert_equal_states(target, untouched)
    with pytest.raises(ValueError, match="missing: ") as error:
        load_published(target, {"bn1.weight": torch.zeros(3)})
    assert all(name in str(error.value) for name in as_published(small_model(1))), "all names are listed"
    with pytest.raises(ValueError, match="missing"):
        load_published(target.backbone, {})


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_reads_wrapped_and_plain_pytorch_files(tmp_path, wrapper):
    state = {"a.weight": torch.arange(3.0)}
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "weights.pth")
    assert torch.equal(read_weights_file(tmp_path / "weights.pth")["a.weight"], state["a.weight"])


def test_reads_safetensors_files(tmp_path):
    save_file({"a": torch.arange(3.0)}, tmp_path / "weights.safetensors")
    assert torch.equal(read_weights_file(tmp_path / "weights.safetensors")["a"], torch.arange(3.0))


class Unknown:
    pass


def test_rejects_files_that_contain_anything_but_tensors(tmp_path):
    for content in ({"epoch": 3}, [torch.zeros(1)], {}):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match="must contain named tensors"):
            read_weights_file(tmp_path / "weights.pth")
    torch.save({"a": Unknown()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="contains objects other than tensors"):
        read_weights_file(tmp_path / "code.pth")
