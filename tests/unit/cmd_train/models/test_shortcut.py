"""Gradients at the start of training: with average shortcuts every frame, pixel region and motion cell counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmd_train.config import build_config
from cmd_train.models.backbones import build_backbone
from cmd_train.models.encoders import MotionEncoder


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
