"""Gradients at the start of training: with average shortcuts every frame, pixel region and motion cell counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmd_train.config import build_config
from cmd_train.models.backbones import build_backbone
from cmd_train.models.config import ModelConfig
from cmd_train.models.encoders import MotionEncoder
from cmd_train.models.pretrain import PretrainModel
from cmd_train.models.supervised import SupervisedModel
from tests.unit.cmd_train.models.test_networks import SMALL, random_inputs


def input_gradient(name: str, shortcut: str, frames: int, crop_size: int) -> Tensor:
    torch.manual_seed(0)
    # Evaluation mode: the batch statistics of training mode would let every pixel through and hide what is missing.
    backbone = build_backbone(name, width=8, shortcut=shortcut).eval()
    clip = torch.randn(1, 3, frames, crop_size, crop_size, requires_grad=True)
    backbone(clip).pooled_BC.square().sum().backward()
    return clip.grad[0].abs().sum(0)


@pytest.mark.parametrize("name", ["r2plus1d_10", "r2plus1d_26", "r3d_26"])
@pytest.mark.parametrize(("frames", "crop_size"), [(16, 56), (8, 36)])
def test_every_frame_and_region_has_a_gradient_with_average_shortcuts(name: str, frames: int, crop_size: int) -> None:
    gradient_THW = input_gradient(name, "average", frames, crop_size)
    regions = torch.nn.functional.max_pool2d(gradient_THW[None], 4)[0]
    assert (regions > 0).all()
    assert (gradient_THW > 0).float().mean() > 0.9


def test_strided_shortcuts_are_blind_to_most_frames() -> None:
    # Documents why the small networks use average shortcuts.
    gradient_THW = input_gradient("r2plus1d_10", "strided", 16, 56)
    seen = [frame for frame in range(16) if gradient_THW[frame].abs().sum() > 0]
    assert seen == [0, 1, 7, 8, 9]


def test_every_motion_cell_has_a_gradient_with_average_shortcuts() -> None:
    torch.manual_seed(0)
    encoder = MotionEncoder(width=8, shortcut="average").eval()
    motion = torch.randn(1, 3, 8, 14, 14, requires_grad=True)
    encoder(motion).square().sum().backward()
    assert (motion.grad[0].abs().sum(0) > 0).all()


@pytest.mark.parametrize("name", ["r2plus1d_10", "r2plus1d_26", "r3d_26"])
@pytest.mark.parametrize("crop_size", [56, 36, 112])
def test_average_shortcuts_keep_all_shapes(name: str, crop_size: int) -> None:
    with torch.device("meta"):
        clip = torch.empty(2, 3, 16, crop_size, crop_size)
        strided, average = (build_backbone(name, shortcut=kind)(clip) for kind in ("strided", "average"))
    assert strided.feature_BCTHW.shape == average.feature_BCTHW.shape
    assert strided.tokens_BCTHW.shape == average.tokens_BCTHW.shape


@pytest.mark.parametrize("recipe", ["demo", "gestures"])
def test_recipes_of_small_networks_use_average_shortcuts(recipe: str) -> None:
    assert build_config(recipe).model.shortcut == "average"
    assert build_config("ucf101").model.shortcut == "strided"


DIRECTIONS = {"motion_target": "directions", "shortcut": "average"}


@pytest.mark.parametrize("window", ["future", "clip"])
def test_directions_need_no_motion_encoder_and_leave_no_parameter_unused(window: str) -> None:
    config = ModelConfig(**{**SMALL.__dict__, **DIRECTIONS, "motion_window": window, "clip_frames": 16})
    model = PretrainModel(config)
    assert not any(
        ("encoder" in name and "context" not in name) or "predictor" in name for name, _ in model.named_parameters()
    )
    clip, keyframe, _ = random_inputs(config, samples=4)
    output = model(clip, keyframe)
    parts = 4 if window == "clip" else 2
    assert output.direction_BKQHW.shape == (4, 9, parts, 2, 2)
    assert output.motion_query_BPD is None
    # Random residual scales, so that no branch is inert.
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    output = model(clip, keyframe)
    loss = output.direction_BKQHW.square().sum() + (output.context_query_BD * output.context_key_BD.roll(1, 0)).sum()
    loss.backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_supervised_model_predicts_directions_in_training_only() -> None:
    config = ModelConfig(**{**SMALL.__dict__, **DIRECTIONS, "motion_window": "clip"})
    model = SupervisedModel(config, classes=3)
    clip = random_inputs(config)[0]
    assert model(clip).embeddings.direction_BKQHW.shape == (2, 9, 2, 2, 2)
    assert model.eval()(clip).embeddings.direction_BKQHW is None
    plain = SupervisedModel(ModelConfig(**{**config.__dict__, "motion_head": False}), classes=3)
    assert set(plain.state_dict()) < set(model.state_dict())
