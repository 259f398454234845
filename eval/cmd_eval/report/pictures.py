"""Pictures of the report, drawn from shards: retrieval examples, and keyframes with their motion vectors.

Shape legend: T frames, gh x gw grid cells.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cmd_eval.report.tables import Record
from cmd_extract.schema import QUARTER_PX, MotionGrid, VideoEntry
from cmd_extract.shard.drawing import BRIGHTEST_PX, color_motion, draw_arrows
from cmd_extract.shard.folders import join_paths
from cmd_extract.shard.reader import ShardSet

COLOR_KEY = (
    "direction as hue (right red, down yellow-green, left cyan, up violet), speed as saturation (full at "
    f"{BRIGHTEST_PX:g} pixels per frame), gray cells have no vector"
)

_MAX_EXAMPLES = 12
_STRIP_FRAMES = 3
_STRIP_SIZE = (128, 96)
_GAP = 2
_QUALITY = 80
_MAX_FRAMES_SEARCHED = 300
_ENLARGED = 2  # relative to the canonical stream, so that arrows are thin lines
_LINE_PX = 2
_MOTION_SIZE = (680, 512)
_MIN_ARROW_PX = 1.0


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image embedded in the page as a data URI, with alternative text."""

    uri: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True, kw_only=True)
class MotionView:
    """A keyframe of a video, a later frame with its motion vectors, and the vectors as colors.

    Attributes:
        video_id, label: identity of the video.
        keyframe, arrows, colors: the images.
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


@dataclass(frozen=True, kw_only=True)
class ExampleVideo:
    """A video of a retrieval example.

    Attributes:
        video_id: identity of the video.
        name: its label, or its group in retrieval by group.
        other_name: its group, or its label in retrieval by group.
        similarity: cosine similarity to the query; None for the query itself.
        hit: whether a neighbor has the name of the query; None for the query itself, and if it has no name.
        strip: frames of the video; None if they cannot be decoded.
    """

    video_id: str
    name: str
    other_name: str
    similarity: float | None
    hit: bool | None
    strip: Picture | None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A query and its nearest neighbors.

    Attributes:
        target: ``label`` or ``group``, which a hit has in common with the query.
        query, neighbors: the videos.
        hits: number of neighbors that are hits.
    """

    target: str
    query: ExampleVideo
    neighbors: Sequence[ExampleVideo]
    hits: int


def data_uri(mime: str, content: bytes) -> str:
    """Return a data URI."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def jpeg_picture(image: Image.Image, alt: str) -> Picture:
    """Encode an image as JPEG."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return Picture(uri=data_uri("image/jpeg", stream.getvalue()), width=image.width, height=image.height, alt=alt)


def png_picture(image: Image.Image, alt: str) -> Picture:
    """Encode an image as PNG."""
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return Picture(uri=data_uri("image/png", stream.getvalue()), width=image.width, height=image.height, alt=alt)


def read_examples(record: Record, split: Record, shards: ShardSet) -> tuple[list[Example], list[str]]:
    """Draw the examples of a retrieval result.

    Args:
        record: the result; it must be of these shards.
        split: one of its splits.
        shards: shards to read the frames from.

    Returns:
        The examples, and a line for each one with a video that is not in the shards.
    """
    chosen, target = split["examples"][:_MAX_EXAMPLES], str(split["target"])
    numbers = shards.videos.find(n for e in chosen for n in (e["query"], *(each["video"] for each in e["neighbors"])))
    entries = {video_id: shards.videos[number] for video_id, number in numbers.items()}

    def example_video(video_id: str, similarity: float | None = None, hit: bool | None = None) -> ExampleVideo:
        entry = entries[video_id]
        names = (entry.label, entry.group) if target == "label" else (entry.group, entry.label)
        return ExampleVideo(
            video_id=video_id,
            name=names[0],
            other_name=names[1],
            similarity=similarity,
            hit=hit,
            strip=try_strip(shards, entry),
        )

    examples, problems = [], []
    for example in chosen:
        used = [example["query"], *(neighbor["video"] for neighbor in example["neighbors"])]
        unknown = [video_id for video_id in used if video_id not in entries]
        if unknown:
            problems.append(
                f"retrieval example of {example['query']}: {record['file']} lists {unknown[0]}, which is not in "
                f"{join_paths(shards.folders)}; run the command that created this file again"
            )
            continue
        neighbors = [example_video(n["video"], n["similarity"], bool(n["hit"])) for n in example["neighbors"]]
        hits = sum(bool(neighbor.hit) for neighbor in neighbors)
        query = example_video(example["query"])
        examples.append(Example(target=target, query=query, neighbors=neighbors, hits=hits))
    return examples, problems


def try_strip(shards: ShardSet, entry: VideoEntry) -> Picture | None:
    """Return three frames of a video; None if they cannot be decoded."""
    try:
        return draw_strip(shards, entry)
    except (ValueError, OSError):
        # The page shows a placeholder; the rest of the example is still useful.
        return None


def draw_strip(shards: ShardSet, entry: VideoEntry) -> Picture:
    """Draw three evenly spaced frames of a video, one below the other.

    Raises:
        ValueError: a frame cannot be decoded.
    """
    numbers = np.linspace(0, entry.frame_count - 1, _STRIP_FRAMES + 2)[1:-1].round().astype(int).tolist()
    frames = [_frame(shards, entry, number) for number in numbers]
    for frame in frames:
        frame.thumbnail(_STRIP_SIZE)
    width, height = frames[0].size
    strip = Image.new("RGB", (width, (height + _GAP) * len(frames) - _GAP), (128, 128, 128))
    for number, frame in enumerate(frames):
        strip.paste(frame, (0, number * (height + _GAP)))
    return jpeg_picture(strip, f"Three frames of {entry.video_id}")


def draw_motion(shards: ShardSet, entry: VideoEntry) -> MotionView:
    """Draw the frame with the most motion among the first 300 frames of a video.

    Raises:
        ValueError: an image cannot be decoded.
    """
    motion = shards.motion(entry, 0, min(entry.frame_count, _MAX_FRAMES_SEARCHED))
    frame = most_moving_frame(motion)
    number = _keyframe_before(entry, frame)
    header = shards.header
    size = (header.canonical_width, header.canonical_height)
    keyframe = _decode(shards.keyframe_jpeg(entry, number), entry)
    keyframe.thumbnail(_MOTION_SIZE)
    one = MotionGrid(grid_quarter_px=motion.grid_quarter_px[frame : frame + 1], valid=motion.valid[frame : frame + 1])
    arrows = frame_with_arrows(_frame(shards, entry, frame).resize(size), one, header.cell_px)
    cell = np.ones((header.cell_px, header.cell_px, 1), np.uint8)
    colors = np.kron(color_motion(one.grid_quarter_px, one.valid), cell)[: size[1], : size[0]]
    return MotionView(
        video_id=entry.video_id,
        label=entry.label,
        keyframe=jpeg_picture(keyframe, f"Keyframe of {entry.video_id}"),
        arrows=jpeg_picture(arrows, f"Frame {frame} of {entry.video_id} with motion vectors as arrows"),
        colors=png_picture(Image.fromarray(colors), f"Motion vectors of frame {frame} of {entry.video_id} as colors"),
        frame=frame,
        keyframe_number=entry.keyframe_indices[number],
        valid_share=float(one.valid.mean()),
    )


def most_moving_frame(motion: MotionGrid) -> int:
    """Return the frame with the highest mean speed over all cells; the first one if there are ties."""
    lengths = np.hypot(*np.moveaxis(motion.grid_quarter_px.astype(np.float64), 1, 0)) * motion.valid
    return int(lengths.mean(axis=(1, 2)).argmax())


def frame_with_arrows(frame: Image.Image, motion: MotionGrid, cell_px: int) -> Image.Image:
    """Enlarge a frame of the canonical stream and draw its motion vectors as arrows."""
    image = frame.resize((frame.width * _ENLARGED, frame.height * _ENLARGED), Image.Resampling.BICUBIC)
    dx, dy = motion.grid_quarter_px[0].astype(np.float64) / QUARTER_PX
    moving = motion.valid[0] & (np.hypot(dx, dy) >= _MIN_ARROW_PX)
    draw_arrows(image, dx * _ENLARGED, dy * _ENLARGED, moving, cell_px * _ENLARGED, line_px=_LINE_PX)
    image.thumbnail(_MOTION_SIZE)
    return image


def choose_videos(entries: Sequence[VideoEntry], count: int) -> list[VideoEntry]:
    """Choose up to ``count`` videos that cover many labels and groups.

    One video of each label comes first, from a group that has not been chosen yet if possible, then other videos. If
    there are more labels than ``count``, evenly spaced labels are chosen.
    """
    by_label: dict[str, list[VideoEntry]] = {}
    for entry in entries:
        by_label.setdefault(entry.label, []).append(entry)
    labels = sorted(set(by_label) - {""})
    if len(labels) > count:
        labels = [labels[place] for place in np.linspace(0, len(labels) - 1, count).round().astype(int)]
    chosen: list[VideoEntry] = []
    for label in labels:
        groups = {entry.group for entry in chosen}
        chosen.append(next((e for e in by_label[label] if e.group not in groups), by_label[label][0]))
    taken = {entry.video_id for entry in chosen}
    return [*chosen, *(entry for entry in entries if entry.video_id not in taken)][:count]


def _frame(shards: ShardSet, entry: VideoEntry, frame: int) -> Image.Image:
    jpeg = shards.frame_jpegs(entry, [frame])[0]
    if len(jpeg):
        return _decode(jpeg, entry)
    # Extracted without frames: show the preceding keyframe instead.
    return _decode(shards.keyframe_jpeg(entry, _keyframe_before(entry, frame)), entry)


def _keyframe_before(entry: VideoEntry, frame: int) -> int:
    """Return the number of the last keyframe that is not after ``frame``."""
    return max((n for n, index in enumerate(entry.keyframe_indices) if index <= frame), default=0)


def _decode(jpeg: memoryview, entry: VideoEntry) -> Image.Image:
    try:
        return Image.open(io.BytesIO(bytes(jpeg))).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{entry.video_id}: cannot decode a stored image ({error})") from error
