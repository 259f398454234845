import colorsys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance

from extract.schema import ShardHeader
from train.augment import (
    AugmentConfig,
    AugmentedBatch,
    AugmentParameters,
    augment,
    augment_clip,
    augment_motion,
    center_crop,
    center_parameters,
    draw_parameters,
)
from train.augment_color import IMAGENET_MEAN, IMAGENET_STD, grey_of, jitter, shift_hue
from train.augment_parameters import CropParameters
from train.augment_space import blur_weights, crop_motion, crop_pictures, rotate
from train.batch import Batch
from train.sampling_report import SamplingReport

SIZE = (340, 256)
HEADER = ShardHeader(
    config={}, config_hash="", canonical_width=340, canonical_height=256, frame_width=170, frame_height=128, cell_px=8
)
NEUTRAL = AugmentConfig(
    crop_size=56,
    crop_area=(1, 1),
    flip_probability=0,
    blur_probability=0,
    jitter_probability=0,
    grey_probability=0,
)


def draw(config: AugmentConfig, count: int, windows: int = 4, first: int = 0) -> AugmentParameters:
    keys = [(0, index) for index in range(first, first + count)]
    return draw_parameters(config, keys, seed=11, windows=windows, picture_size=SIZE)


def crop_of(*boxes: tuple[float, float, float, float], flip: bool = False) -> CropParameters:
    return CropParameters(box=torch.tensor(boxes, dtype=torch.float32), flip=torch.full((len(boxes),), flip))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_batch(count: int) -> Batch:
    generator = torch.Generator().manual_seed(3)
    motion = torch.randint(-80, 80, (count, 4, 8, 2, 32, 43), generator=generator).to(torch.int16)
    return Batch(
        clip_u8_BTHWC=noise(count, 3, 128, 170, 3, seed=1),
        keyframe_u8_BHWC=noise(count, 256, 340, 3, seed=2),
        motion_quarter_px_BWTCHW=motion,
        motion_valid_BWTHW=torch.rand(count, 4, 8, 32, 43, generator=generator) > 0.3,
        window_valid_BW=torch.ones(count, 4, dtype=torch.bool),
        video_B=torch.arange(count),
        keys=tuple((0, index) for index in range(count)),
        report=SamplingReport(),
    )


# Draws


def test_crops_have_the_configured_area_and_aspect_and_lie_inside() -> None:
    boxes = draw(AugmentConfig(), 2000).motion_crop.box.flatten(0, 1).double()
    left, top, width, height = boxes.unbind(1)
    area, aspect = width * height, width / height * (340 / 256)
    assert boxes.min() >= 0
    assert max((left + width).max(), (top + height).max()) <= 1 + 1e-6
    assert 0.2 - 1e-6 <= area.min() < 0.21
    assert 0.95 < area.max() <= 1
    assert 3 / 4 - 1e-6 <= aspect.min() < 0.76
    assert 1.32 < aspect.max() <= 4 / 3 + 1e-6
    # Every position is as likely as its mirror image.
    assert (left / (1 - width)).mean() == pytest.approx(0.5, abs=0.02)
    assert (top / (1 - height).clamp(min=1e-9)).mean() == pytest.approx(0.5, abs=0.02)


def test_area_is_uniform_where_every_attempt_fits() -> None:
    boxes = draw(AugmentConfig(crop_area=(0.2, 0.5)), 3000, windows=1).clip_crop.box
    area = boxes[:, 2] * boxes[:, 3]
    quantiles = torch.quantile(area, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quantiles, torch.tensor([0.275, 0.35, 0.425]), atol=0.01, rtol=0)


def test_a_crop_that_never_fits_falls_back_to_the_centre() -> None:
    wide = draw_parameters(
        AugmentConfig(crop_area=(1, 1)), [(0, 0)], seed=0, windows=1, picture_size=(400, 100)
    ).clip_crop
    torch.testing.assert_close(wide.box, torch.tensor([[1 / 3, 0, 1 / 3, 1]]))
    tall = draw_parameters(
        AugmentConfig(crop_area=(1, 1)), [(0, 0)], seed=0, windows=1, picture_size=(100, 400)
    ).clip_crop
    torch.testing.assert_close(tall.box, torch.tensor([[0, 1 / 3, 1, 1 / 3]]))


def test_colour_draws_have_the_configured_rates_and_ranges() -> None:
    parameters = draw(AugmentConfig(), 4000, windows=1)
    color = parameters.clip_color
    assert parameters.clip_crop.flip.float().mean() == pytest.approx(0.5, abs=0.03)
    assert (color.blur_sigma_B > 0).float().mean() == pytest.approx(0.5, abs=0.03)
    assert color.jitter_B.float().mean() == pytest.approx(0.5, abs=0.03)
    assert color.grey_B.float().mean() == pytest.approx(0.2, abs=0.03)
    sigma = color.blur_sigma_B[color.blur_sigma_B > 0]
    assert 0.1 <= sigma.min() < 0.12
    assert 1.98 < sigma.max() <= 2
    for factor in (color.brightness_B, color.contrast_B, color.saturation_B):
        assert (factor[~color.jitter_B] == 1).all()
        assert 0.6 <= factor.min() < 0.61
        assert 1.39 < factor.max() <= 1.4
    assert (color.hue_B[~color.jitter_B] == 0).all()
    assert -0.1 <= color.hue_B.min() < -0.098
    assert 0.098 < color.hue_B.max() <= 0.1


def test_clip_shares_only_with_its_positive_motion() -> None:
    parameters = draw(AugmentConfig(), 200)
    motion = parameters.motion_crop
    assert torch.equal(motion.box[:, 0], parameters.clip_crop.box)
    assert torch.equal(motion.flip[:, 0], parameters.clip_crop.flip)
    left = torch.cat([motion.box[..., 0], parameters.keyframe_crop.box[:, :1]], 1)
    assert left.flatten().unique().numel() == 1000
    flips = torch.cat([motion.flip, parameters.keyframe_crop.flip[:, None]], 1)
    assert flips.unique(dim=0).shape[0] == 2**5
    assert not torch.equal(parameters.clip_color.blur_sigma_B, parameters.keyframe_color.blur_sigma_B)
    assert not torch.equal(parameters.clip_color.jitter_B, parameters.keyframe_color.jitter_B)


def test_draws_follow_from_seed_epoch_and_position_alone() -> None:
    whole, part = draw(AugmentConfig(), 6), draw(AugmentConfig(), 1, first=4)
    assert torch.equal(whole.motion_crop.box[4:5], part.motion_crop.box)
    for name in (field.name for field in fields(whole.clip_color)):
        assert torch.equal(getattr(whole.keyframe_color, name)[4:5], getattr(part.keyframe_color, name))
    # Nor on the number of windows, or on what else is switched on.
    plain = draw(replace(NEUTRAL, crop_area=(0.2, 1.0)), 6, windows=1)
    assert torch.equal(plain.clip_crop.box, whole.clip_crop.box)
    for seed, key in ((12, (0, 0)), (11, (1, 0))):
        other = draw_parameters(AugmentConfig(), [key], seed=seed, windows=4, picture_size=SIZE)
        assert not torch.equal(other.clip_crop.box, whole.clip_crop.box[:1])


def test_a_sample_is_the_same_in_any_batch() -> None:
    config = AugmentConfig(crop_size=32)
    batch, parameters = random_batch(5), draw(config, 5)
    together = augment(batch, parameters, config, HEADER)
    for index in range(5):
        alone = augment(batch.split(5)[index], draw(config, 1, first=index), config, HEADER)
        assert torch.equal(alone.motion_BWCTHW[0], together.motion_BWCTHW[index])
        # Matrix products may sum in another order, but no more than that.
        torch.testing.assert_close(alone.clip_B3THW[0], together.clip_B3THW[index], atol=2e-5, rtol=0)
        torch.testing.assert_close(alone.keyframe_B31HW[0], together.keyframe_B31HW[index], atol=2e-5, rtol=0)


# Pictures


@pytest.mark.parametrize("size", [24, 56, 112, 200])
def test_resizing_the_whole_picture_is_antialiased_bilinear(size: int) -> None:
    picture = noise(2, 1, 128, 170, 3)
    result = crop_pictures(picture, crop_of((0, 0, 1, 1), (0, 0, 1, 1)), size, None)[:, :, 0]
    planar = picture[:, 0].permute(0, 3, 1, 2).float() / 255
    expected = F.interpolate(planar, (size, size), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_cropping_takes_the_box_and_flips_after_it() -> None:
    picture = noise(1, 2, 128, 160, 3)
    box = (40 / 160, 16 / 128, 64 / 160, 64 / 128)
    expected = picture[:, :, 16:80, 40:104].permute(0, 4, 1, 2, 3).float() / 255
    torch.testing.assert_close(crop_pictures(picture, crop_of(box), 64, None), expected, atol=1e-5, rtol=0)
    flipped = crop_pictures(picture, crop_of(box, flip=True), 64, None)
    torch.testing.assert_close(flipped, expected.flip(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_a_mirrored_gaussian(sigma: float) -> None:
    size, radius = 56, 12
    picture = noise(1, 1, size, size, 3)
    result = crop_pictures(picture, crop_of((0, 0, 1, 1)), size, torch.tensor([sigma * 2]))[0, :, 0]
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = F.pad(picture[0].permute(3, 0, 1, 2).float() / 255, [radius] * 4, mode="reflect")
    expected = F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    assert torch.equal(blur_weights(torch.zeros(1), 9)[0], torch.eye(9))


def test_all_frames_of_a_clip_share_their_draws() -> None:
    frame = noise(3, 1, 128, 170, 3)
    config = AugmentConfig(crop_size=32, jitter_probability=1, blur_probability=1, rotation_degrees=10)
    clip = augment_clip(frame.expand(-1, 4, -1, -1, -1), draw(config, 3), config)
    for time in range(1, 4):
        torch.testing.assert_close(clip[:, :, time], clip[:, :, 0], atol=1e-5, rtol=0)


def test_colours_are_normalised_with_imagenet() -> None:
    clip = torch.full((1, 2, 128, 170, 3), 51, dtype=torch.uint8)
    result = augment_clip(clip, draw(NEUTRAL, 1), NEUTRAL)
    assert result.shape == (1, 3, 2, 56, 56)
    for channel in range(3):
        expected = (0.2 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        torch.testing.assert_close(result[0, channel], torch.full((2, 56, 56), expected), atol=1e-5, rtol=0)


def test_center_crop_takes_112_of_128_without_resampling() -> None:
    clip = noise(2, 2, 128, 170, 3)
    expected = clip[:, :, 8:120, 29:141].permute(0, 4, 1, 2, 3).float() / 255
    expected = (expected - torch.tensor(IMAGENET_MEAN).view(3, 1, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1, 1)
    torch.testing.assert_close(center_crop(clip, 112), expected, atol=1e-4, rtol=0)
    assert center_crop(clip, 56).shape == (2, 3, 2, 56, 56)
    parameters = center_parameters(2, windows=4, picture_size=(170, 128))
    through_parameters = augment_clip(clip, parameters, AugmentConfig())
    torch.testing.assert_close(through_parameters, center_crop(clip, 112), atol=1e-5, rtol=0)


def test_rotation_is_counter_clockwise_and_black_outside() -> None:
    picture = torch.rand(2, 3, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    turned = rotate(picture, torch.tensor([90.0, 0.0]))
    torch.testing.assert_close(turned[0], torch.rot90(picture[0], 1, (-2, -1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned[1], picture[1], atol=1e-5, rtol=0)
    assert rotate(torch.ones(1, 1, 1, 9, 9), torch.tensor([45.0]))[0, 0, 0, 0, 0] == 0


# Colours


def pillow(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray((picture[:, 0].permute(1, 2, 0) * 255).round().byte().numpy())


@pytest.mark.parametrize("which", [0, 1, 2])
def test_jitter_agrees_with_pillow(which: int) -> None:
    picture = noise(2, 1, 24, 20, 3).permute(0, 4, 1, 2, 3).float() / 255
    factors = torch.tensor([0.65, 1.35])
    neutral = [torch.ones(2), torch.ones(2), torch.ones(2), torch.zeros(2)]
    result = jitter(picture, *neutral[:which], factors, *neutral[which + 1 :])
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
    for index, factor in enumerate(factors.tolist()):
        expected = np.asarray(enhance(pillow(picture[index])).enhance(factor), np.float32) / 255
        np.testing.assert_allclose(result[index, :, 0].permute(1, 2, 0), expected, atol=2 / 255)


def test_hue_agrees_with_colorsys() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(3, 3, 1, 6, 7, generator=generator)
    picture[:, :, 0, 0, 0] = 0.5  # grey has no hue
    picture[:, :, 0, 0, 1] = torch.tensor([0.9, 0.9, 0.1])  # two channels are greatest
    picture[:, :, 0, 0, 2] = torch.tensor([0.9, 0.1, 0.9])
    picture[:, :, 0, 0, 3] = torch.tensor([0.1, 0.9, 0.9])
    shifts = torch.tensor([-0.1, 0.0, 0.37])
    result = shift_hue(picture, shifts)
    for index, shift in enumerate(shifts.tolist()):
        pixels = picture[index, :, 0].flatten(1).T.tolist()
        turned = []
        for pixel in pixels:
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            turned.append(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value))
        torch.testing.assert_close(result[index, :, 0].flatten(1).T, torch.tensor(turned), atol=1e-5, rtol=0)


def test_contrast_moves_towards_the_grey_of_each_frame() -> None:
    picture = torch.rand(1, 3, 2, 5, 5, generator=torch.Generator().manual_seed(0)) / 2 + 0.25
    one, zero = torch.ones(1), torch.zeros(1)
    flat = jitter(picture, one, zero, one, zero)
    expected = grey_of(picture).mean((-2, -1), keepdim=True).expand_as(flat)
    torch.testing.assert_close(flat, expected)
    assert flat[0, 0, 0, 0, 0] != flat[0, 0, 1, 0, 0]


def test_grey_and_jitter_change_only_the_drawn_samples() -> None:
    config = replace(NEUTRAL, jitter_probability=0.5, grey_probability=0.5)
    clip, parameters = noise(12, 1, 128, 170, 3), draw(config, 12)
    mean, deviation = (torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    changed = augment_clip(clip, parameters, config) * deviation + mean
    plain = augment_clip(clip, draw(NEUTRAL, 12), NEUTRAL) * deviation + mean
    color = parameters.clip_color
    is_grey = (changed.amax(1) - changed.amin(1)).amax((1, 2, 3)) < 1e-5
    assert torch.equal(is_grey, color.grey_B)
    same = torch.isclose(changed, plain, atol=1e-5).flatten(1).all(1)
    assert torch.equal(same, ~(color.grey_B | color.jitter_B))
    assert 0 < same.sum() < 12


# Motion


def square_scene(left: int, top: int, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A white square on black as a stored frame, and its motion (+3 px, -1.5 px); elsewhere there is none."""
    canonical = torch.zeros(256, 340)
    canonical[top : top + side, left : left + side] = 255
    frame = F.avg_pool2d(canonical[None, None], 2)[0, 0].to(torch.uint8)
    clip = frame[None, None, :, :, None].expand(1, 1, -1, -1, 3).contiguous()
    covered = torch.zeros(32, 43, dtype=torch.bool)
    covered[top // 8 : (top + side) // 8, left // 8 : (left + side) // 8] = True
    vector = torch.tensor([12, -6], dtype=torch.int16).view(1, 1, 2, 1, 1)
    return clip, vector * covered, covered[None, None]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("form", ["native", "paper"])
@pytest.mark.parametrize("seed", range(6))
def test_motion_lies_where_the_picture_shows_it(flip: bool, form: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = AugmentConfig(crop_size=112, motion_input=form)  # type: ignore[arg-type]
    clip, motion, valid = square_scene(8 * int(rng.integers(10, 22)), 8 * int(rng.integers(6, 14)), 96)
    width, height = rng.uniform(0.5, 0.95, 2)
    box = crop_of((rng.uniform(0, 1 - width), rng.uniform(0, 1 - height), width, height), flip=flip)
    picture = crop_pictures(clip, box, 112, None)[0, 0, 0]
    moving = crop_motion(motion, valid, box, config, HEADER)[0, 0, 0] != 0
    scale = 112 // config.motion_size
    # Half an output cell, in crop pixels, and one pixel by which resizing smears the square's edge; the edges lie on
    # stored cells' edges, so that these need no allowance.
    tolerance = torch.full((2,), scale / 2 + 1)
    for axis in (0, 1):
        lit = (picture > 0.5).any(1 - axis).nonzero()
        moved = moving.any(1 - axis).nonzero()
        assert abs(lit.min() - moved.min() * scale) <= tolerance[axis]
        assert abs(lit.max() + 1 - (moved.max() + 1) * scale) <= tolerance[axis]


def test_motion_takes_the_cell_under_each_centre() -> None:
    # The grid's numbers are its own columns; the last column, 42, lies half outside the picture of 340 pixels.
    config = AugmentConfig(crop_size=112, motion_clamp_px=100)
    columns = torch.arange(43, dtype=torch.int16) * 4
    rows = torch.arange(32, dtype=torch.int16).view(32, 1) * 4
    grid = torch.stack([columns.expand(32, 43), rows.expand(32, 43)]).view(1, 1, 2, 32, 43)
    valid = torch.ones(1, 1, 32, 43, dtype=torch.bool)
    result = crop_motion(grid, valid, crop_of((0, 0, 1, 1)), config, HEADER) * 100
    centres_x, centres_y = (np.arange(28) + 0.5) * 340 / 28, (np.arange(28) + 0.5) * 256 / 28
    np.testing.assert_allclose(result[0, 0, 0, 5], centres_x // 8, atol=1e-4)
    np.testing.assert_allclose(result[0, 1, 0, :, 5], centres_y // 8, atol=1e-4)
    edge = crop_motion(grid, valid, crop_of((0.99, 0, 0.01, 1)), config, HEADER) * 100
    np.testing.assert_allclose(edge[0, 0, 0], 42, atol=1e-4)


def test_flip_mirrors_and_turns_only_dx() -> None:
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
    # A crop of half the width and a quarter of the height shows the motion 2 and 4 times as large.
    part, rescaled = crop_of((0.5, 0.75, 0.5, 0.25)), AugmentConfig(crop_size=64, rescale_vectors=True)
    grid[:, :, 1] = -6
    assert torch.equal(crop_motion(grid, valid, part, rescaled, HEADER)[0, :2, 0, 3, 3], torch.tensor([0.5, -0.6]))


def test_augment_gives_the_networks_shapes() -> None:
    config = AugmentConfig(crop_size=32)
    result = augment(random_batch(2), draw(config, 2), config, HEADER)
    assert isinstance(result, AugmentedBatch)
    assert result.clip_B3THW.shape == (2, 3, 3, 32, 32)
    assert result.keyframe_B31HW.shape == (2, 3, 1, 32, 32)
    assert result.motion_BWCTHW.shape == (2, 4, 3, 8, 8, 8)
    assert {result.clip_B3THW.dtype, result.keyframe_B31HW.dtype, result.motion_BWCTHW.dtype} == {torch.float32}


def test_rotation_and_motion_exclude_each_other() -> None:
    config, batch = AugmentConfig(crop_size=32, rotation_degrees=10), random_batch(1)
    with pytest.raises(ValueError, match="rotation_degrees: 10"):
        augment_motion(batch.motion_quarter_px_BWTCHW, batch.motion_valid_BWTHW, draw(config, 1), config, HEADER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_size": 30}, "crop_size: 30 .* multiple of 4"),
        ({"crop_area": (0.0, 1.0)}, "crop_area"),
        ({"crop_aspect": (2.0, 1.0)}, "crop_aspect"),
        ({"flip_probability": 1.5}, "flip_probability: 1.5 .* 0 to 1"),
        ({"hue": 0.6}, "hue: 0.6 .* 0 to 0.5"),
        ({"motion_input": "dense"}, "motion_input: 'dense'"),
    ],
)
def test_config_names_a_bad_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**change)  # type: ignore[arg-type]
