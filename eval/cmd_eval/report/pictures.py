"""Pictures of a report, drawn from shards: strips of frames, and keyframes with their motion vectors.

Shape legend: T frames, gh x gw grid cells.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cmd_extract.schema import QUARTER_PX, MotionGrid, VideoEntry
from cmd_extract.shard.drawing import BRIGHTEST_PX, color_motion
from cmd_extract.shard.reader import ShardSet

STRIP_FRAMES = 3
_STRIP_BOX = (128, 96)
_GAP = 2
_QUALITY = 80
_FRAMES_SEARCHED = 300
_ARROW_EVERY = 2  # cells; more would hide the picture
ARROW_SCALE = 2
_DRAWN_LARGER = 2  # than the canonical stream, so that arrows are fine lines
_TILE_BOX = (680, 512)
_SLOWEST_ARROW_PX = 1.0


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture inside the page: ``uri`` holds it, ``alt`` says what it shows."""

    uri: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True, kw_only=True)
class MotionView:
    """A video's keyframe, a frame with its vectors, and the vectors as colours.

    Attributes:
        video_id, label: of the video.
        keyframe, arrows, colors: the pictures.
        frame: number of the frame with the vectors.
        keyframe_number: frame number of the keyframe.
        valid_share: share of the cells that have a vector.
    """

    video_id: str
    label: str
    keyframe: Picture
    arrows: Picture
    colors: Picture
    frame: int
    keyframe_number: int
    valid_share: float


def data_uri(mime: str, content: bytes) -> str:
    """The content as an address that needs no network."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def jpeg_picture(image: Image.Image, alt: str) -> Picture:
    """A JPEG inside the page."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return Picture(uri=data_uri("image/jpeg", stream.getvalue()), width=image.width, height=image.height, alt=alt)


def draw_strip(shards: ShardSet, entry: VideoEntry) -> Picture:
    """Frames at the start, in the middle and at the end of a video, one below the other.

    Raises:
        ValueError: a frame cannot be decoded.
    """
    places = np.linspace(0, entry.frame_count - 1, STRIP_FRAMES + 2)[1:-1].round().astype(int).tolist()
    frames = [_frame(shards, entry, place) for place in places]
    for frame in frames:
        frame.thumbnail(_STRIP_BOX)
    width, height = frames[0].size
    strip = Image.new("RGB", (width, (height + _GAP) * len(frames) - _GAP), (128, 128, 128))
    for number, frame in enumerate(frames):
        strip.paste(frame, (0, number * (height + _GAP)))
    return jpeg_picture(strip, f"Three frames of {entry.video_id}")


def draw_motion(shards: ShardSet, entry: VideoEntry) -> MotionView:
    """Draws the frame of a video (of its first 300) that moves most.

    Raises:
        ValueError: a picture cannot be decoded.
    """
    motion = shards.motion(entry, 0, min(entry.frame_count, _FRAMES_SEARCHED))
    frame = liveliest_frame(motion)
    number = max((n for n, index in enumerate(entry.keyframe_indices) if index <= frame), default=0)
    header = shards.header
    size = (header.canonical_width, header.canonical_height)
    keyframe = _decode(shards.keyframe_jpeg(entry, number), entry)
    one = MotionGrid(grid_quarter_px=motion.grid_quarter_px[frame : frame + 1], valid=motion.valid[frame : frame + 1])
    arrows = draw_arrows(_frame(shards, entry, frame).resize(size), one, header.cell_px)
    keyframe.thumbnail(_TILE_BOX)
    return MotionView(
        video_id=entry.video_id,
        label=entry.label,
        keyframe=jpeg_picture(keyframe, f"Keyframe of {entry.video_id}"),
        arrows=jpeg_picture(arrows, f"Frame {frame} of {entry.video_id} with motion vectors as arrows"),
        colors=_draw_colors(
            one, header.cell_px, size, f"Motion vectors of frame {frame} of {entry.video_id} as colours"
        ),
        frame=frame,
        keyframe_number=entry.keyframe_indices[number],
        valid_share=float(one.valid.mean()),
    )


def liveliest_frame(motion: MotionGrid) -> int:
    """The frame whose cells move fastest, on the mean over all cells; the first of equals."""
    lengths = np.hypot(*np.moveaxis(motion.grid_quarter_px.astype(np.float64), 1, 0)) * motion.valid
    return int(lengths.mean(axis=(1, 2)).argmax())


def draw_arrows(picture: Image.Image, motion: MotionGrid, cell_px: int) -> Image.Image:
    """A frame, enlarged, with arrows from each second cell's centre to where its content goes, twice as long.

    Args:
        picture: the frame, of the canonical stream's size.
        motion: of this one frame.
        cell_px: side of a cell.
    """
    larger = (picture.width * _DRAWN_LARGER, picture.height * _DRAWN_LARGER)
    image = picture.resize(larger, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    dx, dy = motion.grid_quarter_px[0].astype(np.float64) / QUARTER_PX
    rows, columns = np.nonzero(motion.valid[0] & (np.hypot(dx, dy) >= _SLOWEST_ARROW_PX))
    kept = (rows % _ARROW_EVERY == 0) & (columns % _ARROW_EVERY == 0)
    for row, column in zip(rows[kept].tolist(), columns[kept].tolist(), strict=True):
        start = np.array([column + 0.5, row + 0.5]) * cell_px * _DRAWN_LARGER
        along = np.array([dx[row, column], dy[row, column]]) * ARROW_SCALE * _DRAWN_LARGER
        _draw_arrow(pen, start, start + along)
    image.thumbnail(_TILE_BOX)
    return image


def _draw_arrow(pen: ImageDraw.ImageDraw, start: NDArray[np.float64], tip: NDArray[np.float64]) -> None:
    length = max(float(np.hypot(*(tip - start))), 1e-9)
    along, barb_px = (tip - start) / length, min(6.0, length / 2)
    across = np.array([-along[1], along[0]])
    barbs = [tip - barb_px * along + side * barb_px / 2 * across for side in (1, -1)]
    # Dark below light: seen on any picture.
    for color, width in (((0, 0, 0), 4), ((255, 224, 0), 2)):
        pen.line([tuple(start), tuple(tip)], fill=color, width=width)
        for barb in barbs:
            pen.line([tuple(tip), tuple(barb)], fill=color, width=width)


def _draw_colors(motion: MotionGrid, cell_px: int, size: tuple[int, int], alt: str) -> Picture:
    cells = color_motion(motion.grid_quarter_px, motion.valid)
    large = np.kron(cells, np.ones((cell_px, cell_px, 1), np.uint8))[: size[1], : size[0]]
    image = Image.fromarray(large)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return Picture(uri=data_uri("image/png", stream.getvalue()), width=image.width, height=image.height, alt=alt)


def color_key() -> str:
    """What the colours of a motion picture mean."""
    return (
        "direction as hue (right red, down yellow-green, left cyan, up violet), speed as brightness (full at "
        f"{BRIGHTEST_PX:g} pixels a frame), grey where there is no vector"
    )


def choose_videos(entries: Sequence[VideoEntry], most: int) -> list[VideoEntry]:
    """Up to ``most`` videos: one of each label, of a group that none before it has where there is one, then others."""
    by_label: dict[str, list[VideoEntry]] = {}
    for entry in entries:
        by_label.setdefault(entry.label, []).append(entry)
    # Videos without a label only where labels do not suffice; of many labels, some that are spread over all of them.
    labels = sorted(set(by_label) - {""})
    if len(labels) > most:
        labels = [labels[place] for place in np.linspace(0, len(labels) - 1, most).round().astype(int)]
    chosen: list[VideoEntry] = []
    for label in labels:
        groups = {entry.group for entry in chosen}
        chosen.append(next((e for e in by_label[label] if e.group not in groups), by_label[label][0]))
    taken = {entry.video_id for entry in chosen}
    return [*chosen, *(entry for entry in entries if entry.video_id not in taken)][:most]


def _frame(shards: ShardSet, entry: VideoEntry, frame: int) -> Image.Image:
    jpeg = shards.frame_jpegs(entry, [frame])[0]
    if len(jpeg):
        return _decode(jpeg, entry)
    # Extracted without frames: the keyframe in force stands for it.
    number = max((n for n, index in enumerate(entry.keyframe_indices) if index <= frame), default=0)
    return _decode(shards.keyframe_jpeg(entry, number), entry)


def _decode(jpeg: memoryview, entry: VideoEntry) -> Image.Image:
    try:
        return Image.open(io.BytesIO(bytes(jpeg))).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{entry.video_id}: a stored picture cannot be decoded ({error})") from error
