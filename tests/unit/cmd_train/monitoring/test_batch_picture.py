from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cmd_train.monitoring.batch_picture import draw_batch
from tests.unit.cmd_train.engine.test_step import batch


def test_picture_shows_frames_and_keyframe_of_each_sample(tmp_path: Path) -> None:
    stored = batch()
    stored.clip_u8_BTHWC[1, 0] = torch.tensor([10, 200, 30], dtype=torch.uint8)
    draw_batch(stored, [f"video-{n}" for n in range(6)], tmp_path / "first.png")
    pixels = np.asarray(Image.open(tmp_path / "first.png"))
    assert pixels.shape[0] % 6 == 0
    height = pixels.shape[0] // 6
    assert pixels[height + 60, 50].tolist() == [10, 200, 30]
    assert [path.name for path in tmp_path.iterdir()] == ["first.png"]
