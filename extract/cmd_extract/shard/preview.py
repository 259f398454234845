"""Preview of a stored video: keyframe, frame with arrows, motion as colors, validity mask."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cmd_extract.schema import QUARTER_PX, VideoEntry
from cmd_extract.shard.drawing import ARROW_SCALE, color_wheel, direction_colors, draw_arrows
from cmd_extract.shard.reader import ShardSet

_FORMATS = (".png", ".jpg", ".gif")
_WHEEL_PX = 64
_GAP_PX = 4
_TITLE_PX = 14
_IMAGE_ROWS = 4
_FRAME_MILLISECONDS = 100
_BACKGROUND = (205, 205, 215)  # neither white nor black, the colors of the validity mask
_MIN_SCALE_PX, _SCALE_PERCENTILE = 2.0, 99


def draw_preview(shards: ShardSet, entry: VideoEntry, target: Path, *, start: int = 0, frames: int = 16) -> None:
    """Draw part of a video as an image (``.png``, ``.jpg``) or an animation (``.gif``).

    Each row shows the current keyframe, the frame with its vectors as arrows, the vectors as colors with the color
    wheel as key, and the validity mask (white: the cell has a vector).

    Args:
        shards: the shards.
        entry: one of their videos.
        target: file to write.
        start: first frame.
        frames: number of frames. An animation shows all of them; an image shows four, evenly spaced, and no I-frames
            unless there is nothing else.

    Raises:
        ValueError: ``target`` has another suffix, or ``start`` is out of range.
    """
    if target.suffix not in _FORMATS:
        raise ValueError(f"output: must end in {', '.join(_FORMATS)}, got {target.name!r}")
    if not 0 <= start < entry.frame_count:
        raise ValueError(f"start: must be between 0 and {entry.frame_count - 1}, got {start}")
    selected = list(range(start, min(start + frames, entry.frame_count)))
    if target.suffix == ".gif":
        rows = [_draw_row(shards, entry, frame) for frame in selected]
        rows[0].save(target, save_all=True, append_images=rows[1:], duration=_FRAME_MILLISECONDS, loop=0)
        return
    predicted = [f for f in selected if f not in entry.keyframe_indices] or selected
    spaced = np.linspace(0, len(predicted) - 1, min(_IMAGE_ROWS, len(predicted))).round().astype(int)
    rows = [_draw_row(shards, entry, predicted[i]) for i in spaced]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), _BACKGROUND)
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * row.height))
    sheet.save(target)


def _draw_row(shards: ShardSet, entry: VideoEntry, frame: int) -> Image.Image:
    header = shards.header
    size, cell_px = (header.canonical_width, header.canonical_height), header.cell_px
    motion = shards.motion(entry, frame, frame + 1)
    dx, dy = motion.grid_quarter_px[0].astype(np.float64) / QUARTER_PX
    valid = motion.valid[0]
    number = max((n for n, index in enumerate(entry.keyframe_indices) if index <= frame), default=0)
    keyframe = Image.open(BytesIO(shards.keyframe_jpeg(entry, number))).convert("RGB")
    jpeg = bytes(shards.frame_jpegs(entry, [frame])[0])
    # Without small frames, the arrows are drawn on the keyframe.
    arrows = Image.open(BytesIO(jpeg)).convert("RGB").resize(size) if jpeg else keyframe.copy()
    draw_arrows(arrows, dx, dy, valid, cell_px)
    scale_px = max(_MIN_SCALE_PX, float(np.percentile(np.hypot(dx, dy), _SCALE_PERCENTILE)))
    colors = _enlarge_cells(direction_colors(dx, dy, valid, scale_px), cell_px, size)
    wheel = color_wheel(_WHEEL_PX)
    colors.paste(wheel, (0, 0), wheel)
    mask = _enlarge_cells(np.repeat(valid[:, :, None] * np.uint8(255), 3, axis=2), cell_px, size)
    titles = (
        f"keyframe {entry.keyframe_indices[number]}",
        f"frame {frame}, vectors x {ARROW_SCALE}",
        f"full color from {scale_px:.1f} px",
        f"valid {valid.mean():.0%}",
    )
    return _join_tiles((keyframe, arrows, colors, mask), titles)


def _join_tiles(tiles: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Return a row of images of one size, each below its title."""
    width, height = tiles[0].size
    row = Image.new("RGB", ((width + _GAP_PX) * len(tiles), height + _TITLE_PX + _GAP_PX), _BACKGROUND)
    pen = ImageDraw.Draw(row)
    for number, (tile, title) in enumerate(zip(tiles, titles, strict=True)):
        left = number * (width + _GAP_PX)
        pen.text((left, 1), title, fill="black")
        row.paste(tile, (left, _TITLE_PX))
    return row


def _enlarge_cells(cells: NDArray[np.uint8], cell_px: int, size: tuple[int, int]) -> Image.Image:
    enlarged = np.kron(cells, np.ones((cell_px, cell_px, 1), np.uint8))
    return Image.fromarray(enlarged[: size[1], : size[0]])
