"""Samples and augmentation parameters for the tests of augmentation."""

from __future__ import annotations

import torch

from cmd_extract.schema import ShardHeader
from cmd_train.augment.config import AugmentConfig
from cmd_train.augment.parameters import AugmentParameters, CropParameters, draw_parameters
from cmd_train.data.batch import Batch
from cmd_train.data.sampling_report import SamplingReport

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
    gray_probability=0,
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
        valid_B=torch.ones(count, dtype=torch.bool),
        keys=tuple((0, index) for index in range(count)),
        report=SamplingReport(),
    )
