"""A picture of stored samples, so that wrong data can be seen: frames of the clip, the keyframe, motion as color.

Direction is the hue (right red, down yellow-green, left cyan, up violet), speed the saturation; gray has no vector.

Shape legend: T frames, H x W pixels, gh x gw grid cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cmd_extract.shard.drawing import color_motion
from cmd_extract.system.files import atomic_write
from cmd_train.data.batch import Batch

_MAX_SAMPLES = 6
_MAX_FRAMES = 6
_HEIGHT, _GAP, _TEXT = 96, 3, 14


def draw_batch(batch: Batch, video_ids: Sequence[str], path: Path) -> None:
    """Draw the first samples of a batch before augmentation, one per row.

    Args:
        batch: batch on the CPU.
        video_ids: video of each sample.
        path: PNG file to write.
    """
    rows = [_draw_sample(batch, number, video_ids[number]) for number in range(min(len(batch), _MAX_SAMPLES))]
    picture = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    with atomic_write(path) as temporary:
        picture.save(temporary)


def _draw_sample(batch: Batch, number: int, video_id: str) -> Image.Image:
    frames_THWC = batch.clip_u8_BTHWC[number].numpy()
    shown = np.linspace(0, len(frames_THWC) - 1, min(len(frames_THWC), _MAX_FRAMES)).round().astype(int)
    tiles = [(f"frame {frame}", Image.fromarray(frames_THWC[frame])) for frame in shown]
    if batch.keyframe_u8_BHWC.shape[1]:
        tiles.append(("keyframe", Image.fromarray(batch.keyframe_u8_BHWC[number].numpy())))
    width = tiles[0][1].width * _HEIGHT // tiles[0][1].height
    pairs = zip(batch.motion_quarter_px_BWTCHW[number].numpy(), batch.motion_valid_BWTHW[number].numpy(), strict=True)
    for window, (motion, valid) in enumerate(pairs):
        name = "motion to predict" if window == 0 else f"negative motion {window}"
        tiles.append((name, Image.fromarray(color_motion(motion, valid))))
    row = Image.new("RGB", (len(tiles) * (width + _GAP), _HEIGHT + 2 * _TEXT), "white")
    pen = ImageDraw.Draw(row)
    pen.text((1, 0), video_id, fill="black")
    for place, (name, tile) in enumerate(tiles):
        left = place * (width + _GAP)
        pen.text((left + 1, _TEXT), name, fill="black")
        row.paste(tile.resize((width, _HEIGHT), Image.Resampling.NEAREST), (left, 2 * _TEXT))
    return row
