from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cmd_train.augment.apply import augment_motion
from cmd_train.augment.config import AugmentConfig
from cmd_train.augment.global_motion import remove_global_motion
from tests.unit.cmd_train.augment.samples import HEADER, draw, random_batch

ROWS, COLUMNS = 16, 20


def moving_camera(*, zoom: float, outliers: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (2, 3) frames in quarter pixels: pan, zoom and rotation, a moving object and missing cells."""
    rng = np.random.default_rng(seed)
    row, column = np.meshgrid(np.linspace(-1, 1, ROWS), np.linspace(-1, 1, COLUMNS), indexing="ij")
    camera = np.zeros((2, 3, 2, ROWS, COLUMNS), np.float32)
    for window, frame in np.ndindex(2, 3):
        pan, turn = rng.uniform(-12, 12, 2), rng.uniform(-zoom, zoom)
        camera[window, frame, 0] = pan[0] + zoom * column - turn * row
        camera[window, frame, 1] = pan[1] + zoom * row + turn * column
    own = np.zeros_like(camera)
    own[..., 0, 2 : 2 + round(outliers * ROWS * COLUMNS / 10), 5:15] = 30
    valid = rng.random((2, 3, ROWS, COLUMNS)) > 0.2
    motion = np.round(camera + own) * valid[:, :, None]
    return torch.tensor(motion, dtype=torch.int16), torch.tensor(valid), torch.tensor(own * valid[:, :, None])


@pytest.mark.parametrize("seed", range(3))
def test_object_motion_remains(seed: int) -> None:
    motion, valid, own = moving_camera(zoom=0, outliers=0.25, seed=seed)
    residual = remove_global_motion(motion, valid)
    assert (residual - own).abs().max() < 1.5, "quarter pixels; the stored vectors are rounded by up to 0.5"
    assert (residual[~valid.unsqueeze(2).expand_as(residual)] == 0).all()


def test_median_does_not_remove_zoom() -> None:
    motion, valid, own = moving_camera(zoom=10, outliers=0.25)
    assert (remove_global_motion(motion, valid) - own).abs().max() > 5


def test_frames_with_few_or_no_vectors() -> None:
    motion, valid = torch.zeros(1, 4, 2, 6, 6, dtype=torch.int16), torch.zeros(1, 4, 6, 6, dtype=torch.bool)
    valid[0, 1, 2, 2] = valid[0, 2, 3, :] = valid[0, 3] = True  # none, one, a line, all
    motion[:, :, 0] = 8
    motion *= valid.unsqueeze(2)
    residual = remove_global_motion(motion, valid)
    assert residual.isfinite().all()
    assert residual.abs().max() < 0.01


def test_median_equals_numpy() -> None:
    motion = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    valid = torch.rand(1, 4, 3, 3, generator=torch.Generator().manual_seed(1)) > 0.4
    assert {int(count) % 2 for count in valid.sum((2, 3)).flatten()} == {0, 1}, "odd and even numbers of cells"
    residual = remove_global_motion(motion, valid)
    for frame in range(4):
        chosen = motion[0, frame][:, valid[0, frame]].numpy()
        median = np.sort(chosen, axis=1)[:, (chosen.shape[1] - 1) // 2]
        np.testing.assert_array_equal(residual[0, frame][:, valid[0, frame]], chosen - median[:, None])


def test_augmentation_removes_global_motion_before_the_crop() -> None:
    batch, config = random_batch(2), AugmentConfig(crop_size=32)
    arguments = (batch.motion_valid_BWTHW, draw(config, 2))
    pan = torch.tensor([20, -12], dtype=torch.int16).view(2, 1, 1)
    chances = torch.rand(2, 4, 8, 1, 32, 43, generator=torch.Generator().manual_seed(0))
    still = (chances > 0.8) * torch.tensor(16, dtype=torch.int16)
    motion = still.expand(-1, -1, -1, 2, -1, -1).contiguous()
    expected = augment_motion(motion, *arguments, config, HEADER)
    shown = augment_motion(motion + pan, *arguments, replace(config, global_motion="median"), HEADER)
    assert (shown - expected).abs().max() < 1e-6
    kept = augment_motion(motion + pan, *arguments, config, HEADER)
    assert (kept - expected).abs().max() > 0.3
    with pytest.raises(ValueError, match=r"global_motion: must be one of .* 'mean'"):
        replace(config, global_motion="mean")  # type: ignore[arg-type] # plain str
