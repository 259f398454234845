import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cmd_train.augment.apply import AugmentedBatch, augment, augment_motion
from cmd_train.augment.config import AugmentConfig
from cmd_train.augment.space import crop_motion, crop_pictures
from tests.unit.cmd_train.augment.samples import HEADER, crop_of, draw, random_batch


def square_scene(left: int, top: int, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a stored frame with a white square on black, its motion (+3 px, -1.5 px) and the validity."""
    canonical = torch.zeros(256, 340)
    canonical[top : top + side, left : left + side] = 255
    frame = F.avg_pool2d(canonical[None, None], 2)[0, 0].to(torch.uint8)
    clip = frame[None, None, :, :, None].expand(1, 1, -1, -1, 3).contiguous()
    covered = torch.zeros(32, 43, dtype=torch.bool)
    covered[top // 8 : (top + side) // 8, left // 8 : (left + side) // 8] = True
    vector = torch.tensor([12, -6], dtype=torch.int16).view(1, 1, 2, 1, 1)
    return clip, vector * covered, covered[None, None]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("motion_input", ["native", "paper"])
@pytest.mark.parametrize("seed", range(6))
def test_motion_is_aligned_with_the_picture(flip: bool, motion_input: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = AugmentConfig(crop_size=112, motion_input=motion_input)  # type: ignore[arg-type] # plain str
    clip, motion, valid = square_scene(8 * int(rng.integers(10, 22)), 8 * int(rng.integers(6, 14)), 96)
    width, height = rng.uniform(0.5, 0.95, 2)
    box = crop_of((rng.uniform(0, 1 - width), rng.uniform(0, 1 - height), width, height), flip=flip)
    picture = crop_pictures(clip, box, 112, None)[0, 0, 0]
    moving = crop_motion(motion, valid, box, config, HEADER)[0, 0, 0] != 0
    scale = 112 // config.motion_size
    # Half an output cell, in crop pixels, plus one pixel of blur by resizing. The square is aligned with the stored
    # cells, so these need no allowance.
    tolerance = torch.full((2,), scale / 2 + 1)
    for axis in (0, 1):
        lit = (picture > 0.5).any(1 - axis).nonzero()
        moved = moving.any(1 - axis).nonzero()
        assert abs(lit.min() - moved.min() * scale) <= tolerance[axis]
        assert abs(lit.max() + 1 - (moved.max() + 1) * scale) <= tolerance[axis]


def test_each_output_cell_copies_the_stored_cell_under_its_center() -> None:
    # The grid contains its own indices; the last column, 42, is half outside the picture of 340 pixels.
    config = AugmentConfig(crop_size=112, motion_clamp_px=100)
    columns = torch.arange(43, dtype=torch.int16) * 4
    rows = torch.arange(32, dtype=torch.int16).view(32, 1) * 4
    grid = torch.stack([columns.expand(32, 43), rows.expand(32, 43)]).view(1, 1, 2, 32, 43)
    valid = torch.ones(1, 1, 32, 43, dtype=torch.bool)
    result = crop_motion(grid, valid, crop_of((0, 0, 1, 1)), config, HEADER) * 100
    centers_x, centers_y = (np.arange(28) + 0.5) * 340 / 28, (np.arange(28) + 0.5) * 256 / 28
    np.testing.assert_allclose(result[0, 0, 0, 5], centers_x // 8, atol=1e-4)
    np.testing.assert_allclose(result[0, 1, 0, :, 5], centers_y // 8, atol=1e-4)
    edge = crop_motion(grid, valid, crop_of((0.99, 0, 0.01, 1)), config, HEADER) * 100
    np.testing.assert_allclose(edge[0, 0, 0], 42, atol=1e-4)


def test_flip_negates_only_dx() -> None:
    config = AugmentConfig(crop_size=56)
    batch = random_batch(1)
    arguments = (batch.motion_quarter_px_BWTCHW[0], batch.motion_valid_BWTHW[0])
    boxes = [(0.1, 0.2, 0.6, 0.5)] * 4
    plain = crop_motion(*arguments, crop_of(*boxes), config, HEADER)
    flipped = crop_motion(*arguments, crop_of(*boxes, flip=True), config, HEADER)
    expected = plain.flip(-1) * torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(flipped, expected, atol=0, rtol=0)
    assert plain[:, 0].abs().max() > 0


def test_values_are_clamped_scaled_and_zero_where_invalid() -> None:
    grid = torch.zeros(1, 1, 2, 32, 43, dtype=torch.int16)
    grid[:, :, 0], grid[:, :, 1] = 10, -100  # 2.5 px, -25 px
    valid = torch.ones(1, 1, 32, 43, dtype=torch.bool)
    valid[..., :16, :] = False
    whole = crop_of((0, 0, 1, 1))
    result = crop_motion(grid, valid, whole, AugmentConfig(crop_size=64), HEADER)
    assert result.shape == (1, 3, 1, 16, 16)
    assert (result[..., :8, :] == 0).all()
    assert torch.equal(result[0, :, 0, 12, 7], torch.tensor([0.25, -1, 1]))
    paper = crop_motion(grid, valid, whole, AugmentConfig(crop_size=64, motion_input="paper"), HEADER)
    assert paper.shape == (1, 2, 1, 64, 64)
    assert torch.equal(paper[0, :, 0, 60, 7], torch.tensor([0.25, -1]))
    # A crop with half the width and a quarter of the height magnifies motion 2 and 4 times.
    part, rescaled = crop_of((0.5, 0.75, 0.5, 0.25)), AugmentConfig(crop_size=64, rescale_vectors=True)
    grid[:, :, 1] = -6
    assert torch.equal(crop_motion(grid, valid, part, rescaled, HEADER)[0, :2, 0, 3, 3], torch.tensor([0.5, -0.6]))


def test_augment_returns_the_input_shapes_of_the_network() -> None:
    config = AugmentConfig(crop_size=32)
    result = augment(random_batch(2), draw(config, 2), config, HEADER)
    assert isinstance(result, AugmentedBatch)
    assert result.clip_B3THW.shape == (2, 3, 3, 32, 32)
    assert result.keyframe_B31HW.shape == (2, 3, 1, 32, 32)
    assert result.motion_BWCTHW.shape == (2, 4, 3, 8, 8, 8)
    assert {result.clip_B3THW.dtype, result.keyframe_B31HW.dtype, result.motion_BWCTHW.dtype} == {torch.float32}


def test_rotation_and_motion_exclude_each_other() -> None:
    config, batch = AugmentConfig(crop_size=32, rotation_degrees=10), random_batch(1)
    with pytest.raises(ValueError, match=r"rotation_degrees: must be 0 .* got 10"):
        augment_motion(batch.motion_quarter_px_BWTCHW, batch.motion_valid_BWTHW, draw(config, 1), config, HEADER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_size": 30}, "crop_size: must be a positive multiple of 4, got 30"),
        ({"crop_area": (0.0, 1.0)}, "crop_area"),
        ({"crop_aspect": (2.0, 1.0)}, "crop_aspect"),
        ({"flip_probability": 1.5}, "flip_probability: must be at least 0 and at most 1, got 1.5"),
        ({"hue": 0.6}, "hue: must be at least 0 and at most 0.5, got 0.6"),
        ({"motion_input": "dense"}, "motion_input: must be one of native, paper, got 'dense'"),
    ],
)
def test_config_errors_name_field_and_value(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**change)  # type: ignore[arg-type] # plain str
