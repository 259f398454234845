"""Draws what a shard holds of a video: keyframe, clip frames with arrows, motion as colours, validity."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cmd_extract.schema import QUARTER_PX, VideoEntry
from cmd_extract.shard.reader import ShardSet

_ARROW_EVERY = 2  # cells; more would hide the picture
_LEGEND_PX = 64
_GAP = 4
_TEXT_PX = 14
_PICTURE_ROWS = 4
_MILLISECONDS = 100
_PAGE = (205, 205, 215)  # neither white nor black, which validity is drawn in


def draw_preview(shards: ShardSet, entry: VideoEntry, target: Path, *, start: int = 0, frames: int = 16) -> None:
    """Writes a picture (``.png`` or ``.jpg``) or an animation (``.gif``) of a part of a video.

    Each row shows the keyframe in force, the frame with its vectors as arrows, the vectors as colours (the wheel tells
    which direction is which), and in white the cells that have a vector.

    Args:
        shards: the set.
        entry: one of its videos.
        target: file to write.
        start: first frame.
        frames: number of frames; a picture shows four of them, evenly spread, and of these I-frames only if all are.

    Raises:
        ValueError: ``target`` has another ending, or there is no such frame.
    """
    if target.suffix not in (".png", ".jpg", ".gif"):
        raise ValueError(f"output: {target.name!r} must end in .png, .jpg or .gif")
    if not 0 <= start < entry.frame_count:
        raise ValueError(f"start: {start} is not between 0 and {entry.frame_count - 1}")
    chosen = list(range(start, min(start + frames, entry.frame_count)))
    if target.suffix == ".gif":
        rows = [_draw_row(shards, entry, frame) for frame in chosen]
        rows[0].save(target, save_all=True, append_images=rows[1:], duration=_MILLISECONDS, loop=0)
        return
    predicted = [f for f in chosen if f not in entry.keyframe_indices] or chosen
    spread = np.linspace(0, len(predicted) - 1, min(_PICTURE_ROWS, len(predicted))).round().astype(int)
    rows = [_draw_row(shards, entry, predicted[i]) for i in spread]
    sheet = Image.new("RGB", (rows[0].width, sum(r.height for r in rows)), _PAGE)
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * row.height))
    sheet.save(target)


def _draw_row(shards: ShardSet, entry: VideoEntry, frame: int) -> Image.Image:
    header = shards.header
    size = (header.canonical_width, header.canonical_height)
    motion = shards.motion(entry, frame, frame + 1)
    dx, dy = motion.grid_quarter_px[0].astype(np.float64) / QUARTER_PX
    valid = motion.valid[0]
    before = [n for n, index in enumerate(entry.keyframe_indices) if index <= frame] or [0]
    keyframe = Image.open(BytesIO(shards.keyframe_jpeg(entry, before[-1]))).convert("RGB")
    jpeg = bytes(shards.frame_jpegs(entry, [frame])[0])
    # Extracted without frames, the arrows stand on the keyframe.
    picture = Image.open(BytesIO(jpeg)).convert("RGB").resize(size) if jpeg else keyframe.copy()
    _draw_arrows(picture, dx, dy, valid, header.cell_px)
    colours = _cells_to_image(_colour(dx, dy, valid), header.cell_px, size)
    _paste_wheel(colours)
    mask = _cells_to_image(np.repeat(valid[:, :, None] * np.uint8(255), 3, axis=2), header.cell_px, size)
    titles = (
        f"keyframe {entry.keyframe_indices[before[-1]]}",
        f"frame {frame}, vectors x 2",
        f"colours, full at {_full_scale(dx, dy):.1f} px",
        f"valid {valid.mean():.0%}",
    )
    return _beside((keyframe, picture, colours, mask), titles)


def _beside(tiles: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    width, height = tiles[0].size
    row = Image.new("RGB", ((width + _GAP) * len(tiles), height + _TEXT_PX + _GAP), _PAGE)
    pen = ImageDraw.Draw(row)
    for number, (tile, title) in enumerate(zip(tiles, titles, strict=True)):
        left = number * (width + _GAP)
        pen.text((left, 1), title, fill="black")
        row.paste(tile, (left, _TEXT_PX))
    return row


def _draw_arrows(
    picture: Image.Image, dx: NDArray[np.float64], dy: NDArray[np.float64], valid: NDArray[np.bool_], cell_px: int
) -> None:
    """Arrows from where a block's content came from, twice as long as the motion."""
    pen = ImageDraw.Draw(picture)
    rows, columns = np.nonzero(valid & (np.hypot(dx, dy) >= 0.5))
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if row % _ARROW_EVERY or column % _ARROW_EVERY:
            continue
        x, y = (column + 0.5) * cell_px, (row + 0.5) * cell_px
        tip = (x + 2 * dx[row, column], y + 2 * dy[row, column])
        pen.line([(x, y), tip], fill=(255, 230, 0))
        pen.ellipse([tip[0] - 1, tip[1] - 1, tip[0] + 1, tip[1] + 1], fill=(255, 0, 0))


def _full_scale(dx: NDArray[np.float64], dy: NDArray[np.float64]) -> float:
    return max(2.0, float(np.percentile(np.hypot(dx, dy), 99)))


def _colour(
    dx: NDArray[np.float64], dy: NDArray[np.float64], valid: NDArray[np.bool_], scale: float | None = None
) -> NDArray[np.uint8]:
    """Direction as hue, length as saturation; white where nothing moves, grey where there is no vector."""
    length = np.minimum(np.hypot(dx, dy) / (scale or _full_scale(dx, dy)), 1)
    hue = (np.arctan2(dy, dx) / (2 * np.pi)) % 1
    # One cosine a channel, a third of a turn apart.
    phases = np.stack([np.cos(2 * np.pi * (hue - shift)) for shift in (0, 1 / 3, 2 / 3)], axis=-1)
    pure = np.clip(0.5 + phases, 0, 1)
    colours = 1 - length[..., None] * (1 - pure)
    colours[~valid] = 0.5
    return (255 * colours).astype(np.uint8)


def _cells_to_image(cells: NDArray[np.uint8], cell_px: int, size: tuple[int, int]) -> Image.Image:
    large = np.kron(cells, np.ones((cell_px, cell_px, 1), np.uint8))
    return Image.fromarray(large[: size[1], : size[0]])


def _paste_wheel(image: Image.Image) -> None:
    axis = np.linspace(-1, 1, _LEGEND_PX)
    dx, dy = np.meshgrid(axis, axis)
    inside = np.hypot(dx, dy) <= 1
    wheel = Image.fromarray(_colour(dx, dy, inside, scale=1.0))
    image.paste(wheel, (0, 0), Image.fromarray(inside.astype(np.uint8) * 255))
