import colorsys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance

from cmd_train.augment.apply import augment, augment_clip, center_crop
from cmd_train.augment.color import IMAGENET_MEAN, IMAGENET_STD, gray_of, jitter, shift_hue
from cmd_train.augment.config import AugmentConfig
from cmd_train.augment.parameters import CropParameters, center_box, draw_parameters
from cmd_train.augment.space import blur_weights, crop_pictures, rotate
from tests.unit.cmd_train.augment.samples import HEADER, NEUTRAL, SIZE, crop_of, draw, noise, random_batch

# Random parameters


def test_crops_have_the_configured_area_and_aspect_within_the_picture() -> None:
    boxes = draw(AugmentConfig(), 2000).motion_crop.box.flatten(0, 1).double()
    left, top, width, height = boxes.unbind(1)
    area, aspect = width * height, width / height * (340 / 256)
    assert boxes.min() >= 0
    assert max((left + width).max(), (top + height).max()) <= 1 + 1e-6
    assert 0.2 - 1e-6 <= area.min() < 0.21
    assert 0.95 < area.max() <= 1
    assert 3 / 4 - 1e-6 <= aspect.min() < 0.76
    assert 1.32 < aspect.max() <= 4 / 3 + 1e-6
    # Positions are distributed symmetrically.
    assert (left / (1 - width)).mean() == pytest.approx(0.5, abs=0.02)
    assert (top / (1 - height).clamp(min=1e-9)).mean() == pytest.approx(0.5, abs=0.02)


def test_area_is_uniform_if_all_attempts_fit() -> None:
    boxes = draw(AugmentConfig(crop_area=(0.2, 0.5)), 3000, windows=1).clip_crop.box
    area = boxes[:, 2] * boxes[:, 3]
    quantiles = torch.quantile(area, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quantiles, torch.tensor([0.275, 0.35, 0.425]), atol=0.01, rtol=0)


def test_crop_falls_back_to_the_center_if_no_attempt_fits() -> None:
    wide = draw_parameters(
        AugmentConfig(crop_area=(1, 1)), [(0, 0)], seed=0, windows=1, picture_size=(400, 100)
    ).clip_crop
    torch.testing.assert_close(wide.box, torch.tensor([[1 / 3, 0, 1 / 3, 1]]))
    tall = draw_parameters(
        AugmentConfig(crop_area=(1, 1)), [(0, 0)], seed=0, windows=1, picture_size=(100, 400)
    ).clip_crop
    torch.testing.assert_close(tall.box, torch.tensor([[0, 1 / 3, 1, 1 / 3]]))


def test_color_parameters_have_the_configured_rates_and_ranges() -> None:
    parameters = draw(AugmentConfig(), 4000, windows=1)
    color = parameters.clip_color
    assert parameters.clip_crop.flip.float().mean() == pytest.approx(0.5, abs=0.03)
    assert (color.blur_sigma_B > 0).float().mean() == pytest.approx(0.5, abs=0.03)
    assert color.jitter_B.float().mean() == pytest.approx(0.5, abs=0.03)
    assert color.gray_B.float().mean() == pytest.approx(0.2, abs=0.03)
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


def test_clip_shares_crop_and_flip_only_with_its_positive_motion() -> None:
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


def test_parameters_depend_only_on_seed_epoch_and_position() -> None:
    whole, part = draw(AugmentConfig(), 6), draw(AugmentConfig(), 1, first=4)
    assert torch.equal(whole.motion_crop.box[4:5], part.motion_crop.box)
    for name in (field.name for field in fields(whole.clip_color)):
        assert torch.equal(getattr(whole.keyframe_color, name)[4:5], getattr(part.keyframe_color, name))
    # They do not depend on the number of windows or on other enabled augmentations.
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
        # Only the summation order of matrix products may differ.
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


def test_flip_is_applied_after_the_crop() -> None:
    picture = noise(1, 2, 128, 160, 3)
    box = (40 / 160, 16 / 128, 64 / 160, 64 / 128)
    expected = picture[:, :, 16:80, 40:104].permute(0, 4, 1, 2, 3).float() / 255
    torch.testing.assert_close(crop_pictures(picture, crop_of(box), 64, None), expected, atol=1e-5, rtol=0)
    flipped = crop_pictures(picture, crop_of(box, flip=True), 64, None)
    torch.testing.assert_close(flipped, expected.flip(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_gaussian_with_reflection_padding(sigma: float) -> None:
    size, radius = 56, 12
    picture = noise(1, 1, size, size, 3)
    result = crop_pictures(picture, crop_of((0, 0, 1, 1)), size, torch.tensor([sigma * 2]))[0, :, 0]
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = F.pad(picture[0].permute(3, 0, 1, 2).float() / 255, [radius] * 4, mode="reflect")
    expected = F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    assert torch.equal(blur_weights(torch.zeros(1), 9)[0], torch.eye(9))


def test_all_frames_of_a_clip_share_their_parameters() -> None:
    frame = noise(3, 1, 128, 170, 3)
    config = AugmentConfig(crop_size=32, jitter_probability=1, blur_probability=1, rotation_degrees=10)
    clip = augment_clip(frame.expand(-1, 4, -1, -1, -1), draw(config, 3), config)
    for time in range(1, 4):
        torch.testing.assert_close(clip[:, :, time], clip[:, :, 0], atol=1e-5, rtol=0)


def test_colors_are_normalized_with_imagenet() -> None:
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
    crop = CropParameters(box=center_box(170, 128).expand(2, 4), flip=torch.zeros(2, dtype=torch.bool))
    parameters = replace(draw(NEUTRAL, 2), clip_crop=crop)
    through_parameters = augment_clip(clip, parameters, AugmentConfig())
    torch.testing.assert_close(through_parameters, center_crop(clip, 112), atol=1e-5, rtol=0)


def test_rotation_is_counter_clockwise_and_black_outside() -> None:
    picture = torch.rand(2, 3, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    rotated = rotate(picture, torch.tensor([90.0, 0.0]))
    torch.testing.assert_close(rotated[0], torch.rot90(picture[0], 1, (-2, -1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(rotated[1], picture[1], atol=1e-5, rtol=0)
    assert rotate(torch.ones(1, 1, 1, 9, 9), torch.tensor([45.0]))[0, 0, 0, 0, 0] == 0


# Colors


def pillow(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray((picture[:, 0].permute(1, 2, 0) * 255).round().byte().numpy())


@pytest.mark.parametrize("operation", [0, 1, 2])
def test_jitter_matches_pillow(operation: int) -> None:
    picture = noise(2, 1, 24, 20, 3).permute(0, 4, 1, 2, 3).float() / 255
    factors = torch.tensor([0.65, 1.35])
    neutral = [torch.ones(2), torch.ones(2), torch.ones(2), torch.zeros(2)]
    result = jitter(picture, *neutral[:operation], factors, *neutral[operation + 1 :])
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[operation]
    for index, factor in enumerate(factors.tolist()):
        expected = np.asarray(enhance(pillow(picture[index])).enhance(factor), np.float32) / 255
        np.testing.assert_allclose(result[index, :, 0].permute(1, 2, 0), expected, atol=2 / 255)


def test_hue_shift_matches_colorsys() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(3, 3, 1, 6, 7, generator=generator)
    picture[:, :, 0, 0, 0] = 0.5  # gray has no hue
    picture[:, :, 0, 0, 1] = torch.tensor([0.9, 0.9, 0.1])  # two channels share the maximum
    picture[:, :, 0, 0, 2] = torch.tensor([0.9, 0.1, 0.9])
    picture[:, :, 0, 0, 3] = torch.tensor([0.1, 0.9, 0.9])
    shifts = torch.tensor([-0.1, 0.0, 0.37])
    result = shift_hue(picture, shifts)
    for index, shift in enumerate(shifts.tolist()):
        pixels = picture[index, :, 0].flatten(1).T.tolist()
        rotated = []
        for pixel in pixels:
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            rotated.append(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value))
        torch.testing.assert_close(result[index, :, 0].flatten(1).T, torch.tensor(rotated), atol=1e-5, rtol=0)


def test_contrast_blends_with_the_mean_gray_of_each_frame() -> None:
    picture = torch.rand(1, 3, 2, 5, 5, generator=torch.Generator().manual_seed(0)) / 2 + 0.25
    one, zero = torch.ones(1), torch.zeros(1)
    flat = jitter(picture, one, zero, one, zero)
    expected = gray_of(picture).mean((-2, -1), keepdim=True).expand_as(flat)
    torch.testing.assert_close(flat, expected)
    assert flat[0, 0, 0, 0, 0] != flat[0, 0, 1, 0, 0]


def test_grayscale_and_jitter_change_only_the_selected_samples() -> None:
    config = replace(NEUTRAL, jitter_probability=0.5, gray_probability=0.5)
    clip, parameters = noise(12, 1, 128, 170, 3), draw(config, 12)
    mean, deviation = (torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    changed = augment_clip(clip, parameters, config) * deviation + mean
    plain = augment_clip(clip, draw(NEUTRAL, 12), NEUTRAL) * deviation + mean
    color = parameters.clip_color
    is_gray = (changed.amax(1) - changed.amin(1)).amax((1, 2, 3)) < 1e-5
    assert torch.equal(is_gray, color.gray_B)
    same = torch.isclose(changed, plain, atol=1e-5).flatten(1).all(1)
    assert torch.equal(same, ~(color.gray_B | color.jitter_B))
    assert 0 < same.sum() < 12
