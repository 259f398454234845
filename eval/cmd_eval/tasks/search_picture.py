"""Pictures of videos below one another: a strip of frames each, with a line of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cmd_eval.results.whole_file import replace_when_whole
from cmd_extract.schema import VideoEntry
from cmd_extract.shard.reader import ShardSet

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")
FRAMES = 6

_GAP = 4
_MARGIN = 10
_TEXT_PX = 15
_PAGE = "white"
_INK = "black"
_QUERY_PAGE = (226, 234, 250)


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Frames of one video, side by side.

    Attributes:
        title: the line above them.
        frames: at least one, all of one size.
    """

    title: str
    frames: Sequence[Image.Image]


def check_picture_path(path: Path) -> None:
    """Refuses a file name that tells no kind of picture.

    Raises:
        ValueError: the ending is unknown.
    """
    if path.suffix.lower() not in PICTURE_ENDINGS:
        raise ValueError(f"output: {path.name!r} must end in one of {', '.join(PICTURE_ENDINGS)}")


def frames_of(shards: ShardSet, entry: VideoEntry, count: int = FRAMES) -> list[Image.Image]:
    """Frames of a video, evenly spread from its first to its last."""
    places = np.linspace(0, entry.frame_count - 1, count).round().astype(int).tolist()
    jpegs = shards.frame_jpegs(entry, places)
    return [Image.open(BytesIO(jpeg)).convert("RGB") for jpeg in jpegs]


def draw_search(strips: Sequence[Strip], target: Path) -> None:
    """Writes strips below one another; the first, the query, stands on a ground of its own colour.

    Args:
        strips: at least one.
        target: image file.

    Raises:
        ValueError: the ending is unknown.
        OSError: the file cannot be written.
    """
    check_picture_path(target)
    font = ImageFont.load_default(size=_TEXT_PX)
    width, height = strips[0].frames[0].size
    row_height = _TEXT_PX + 3 * _GAP + height
    columns = max(len(strip.frames) for strip in strips)
    texts = max(font.getlength(strip.title) for strip in strips)
    page_width = 2 * _MARGIN + max(columns * (width + _GAP) - _GAP, int(texts) + 1)
    page = Image.new("RGB", (page_width, 2 * _MARGIN + len(strips) * (row_height + _GAP)), _PAGE)
    pen = ImageDraw.Draw(page)
    pen.rectangle((0, 0, page_width, _MARGIN + row_height), fill=_QUERY_PAGE)
    for number, strip in enumerate(strips):
        top = _MARGIN + number * (row_height + _GAP)
        pen.text((_MARGIN, top), strip.title, fill=_INK, font=font)
        for column, frame in enumerate(strip.frames):
            page.paste(frame, (_MARGIN + column * (width + _GAP), top + _TEXT_PX + 2 * _GAP))
    with replace_when_whole(target) as temporary:
        page.save(temporary)
