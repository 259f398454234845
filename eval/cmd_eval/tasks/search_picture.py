"""Picture of search results: a strip of frames for each video, with a title."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cmd_extract.schema import VideoEntry
from cmd_extract.shard.reader import ShardSet
from cmd_extract.system.files import atomic_write

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
FRAMES = 6

_GAP = 4
_MARGIN = 10
_TEXT_PX = 15
_BACKGROUND = "white"
_TEXT = "black"
_QUERY_BACKGROUND = (226, 234, 250)


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Frames of one video, side by side.

    Attributes:
        title: text above the frames.
        frames: at least one frame; all have the same size.
    """

    title: str
    frames: Sequence[Image.Image]


def check_picture_path(path: Path) -> None:
    """Check that the suffix of a file name is that of a supported image format.

    Raises:
        ValueError: it is not.
    """
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"output: {path.name!r} must end in one of {', '.join(PICTURE_SUFFIXES)}")


def frames_of(shards: ShardSet, entry: VideoEntry) -> list[Image.Image]:
    """Return ``FRAMES`` evenly spaced frames of a video, from the first to the last."""
    places = np.linspace(0, entry.frame_count - 1, FRAMES).round().astype(int).tolist()
    jpegs = shards.frame_jpegs(entry, places)
    return [Image.open(BytesIO(jpeg)).convert("RGB") for jpeg in jpegs]


def draw_search(strips: Sequence[Strip], target: Path) -> None:
    """Draw strips below one another; the first, the query, has its own background color.

    Args:
        strips: at least one.
        target: image file to write.

    Raises:
        ValueError: the file name has an unsupported suffix.
        OSError: the file cannot be written.
    """
    check_picture_path(target)
    font = ImageFont.load_default(size=_TEXT_PX)
    width, height = strips[0].frames[0].size
    row_height = _TEXT_PX + 3 * _GAP + height
    columns = max(len(strip.frames) for strip in strips)
    text_width = max(font.getlength(strip.title) for strip in strips)
    page_width = 2 * _MARGIN + max(columns * (width + _GAP) - _GAP, int(text_width) + 1)
    page = Image.new("RGB", (page_width, 2 * _MARGIN + len(strips) * (row_height + _GAP)), _BACKGROUND)
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, page_width, _MARGIN + row_height), fill=_QUERY_BACKGROUND)
    for number, strip in enumerate(strips):
        top = _MARGIN + number * (row_height + _GAP)
        draw.text((_MARGIN, top), strip.title, fill=_TEXT, font=font)
        for column, frame in enumerate(strip.frames):
            page.paste(frame, (_MARGIN + column * (width + _GAP), top + _TEXT_PX + 2 * _GAP))
    with atomic_write(target) as temporary:
        page.save(temporary)
