"""Shard format, version 2: names, dtypes and carriers shared by the writer and the reader.

One HDF5 file holds the videos of some consecutive manifest rows, columns flat across videos, addressed by offsets.
Importing this module loads neither torch nor a decoder. ``extract/README.md`` documents the format for other readers.

Shape legend: V videos, F frames of all videos, K keyframes of all videos, N failures, gh x gw grid cells.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT_NAME = "context-motion-shard"
FORMAT_VERSION = 2
"""What is written."""
READABLE_VERSIONS = (1, 2)
"""Version 1 had no ``video/damage`` (nothing was known), and larger chunks of motion."""

QUARTER_PX = 4
"""Stored motion units per pixel of the canonical stream."""

INDEX_NAME = "index.json"
FAILURES_NAME = "failures.csv"
DAMAGED_NAME = "damaged.csv"
RUN_NAME = "run.json"
SHARD_PATTERN = "shard-{:05d}.h5"
SHARD_GLOB = "shard-*.h5"

# Root attributes.
ATTR_FORMAT = "format"
ATTR_VERSION = "version"
ATTR_CONFIG = "config"
ATTR_CONFIG_HASH = "config_hash"
ATTR_ROWS_HASH = "rows_hash"
ATTR_SOFTWARE = "software"
ATTR_VIDEO_COUNT = "video_count"
ATTR_CANONICAL_SIZE = "canonical_size"  # (width, height) in pixels
ATTR_FRAME_SIZE = "frame_size"  # (width, height) in pixels of the small JPEG frames
ATTR_CELL = "cell_px"

# Data sets. Their strings are fixed-length UTF-8; only attributes have strings of variable length.
VIDEO_ROW = "video/row"  # (V,) int64, manifest row, 0-based
VIDEO_ID = "video/id"
VIDEO_LABEL = "video/label"
VIDEO_GROUP = "video/group"
VIDEO_SPLIT = "video/split"  # HDF5 group: one (V,) string dataset per split column
VIDEO_FRAME_COUNT = "video/frame_count"  # (V,) int64
VIDEO_FPS = "video/fps"  # (V,) float64, frames a second: frames - 1 over their span in seconds
VIDEO_SOURCE_SIZE = "video/source_size"  # (V, 2) int32, width and height in pixels before rotation
VIDEO_CODEC = "video/codec"
VIDEO_FINGERPRINT = "video/fingerprint"  # (V,) S64, SHA-256 of the source file's bytes
VIDEO_SOURCE_BYTES = "video/source_bytes"  # (V,) int64, length of the source file
VIDEO_OWN_VECTORS = "video/own_vectors"  # (V,) uint8, 1 if the vectors are the source's, 0 if a canonical stream's
VIDEO_DAMAGE = "video/damage"  # (V,) uint8, sum of the values of Damage; 0 if nothing is known to be wrong
VIDEO_FIRST_FRAME = "video/first_frame"  # (V,) uint64
VIDEO_FIRST_KEYFRAME = "video/first_keyframe"  # (V,) uint64
FRAME_JPEG = "frame/jpeg"  # (bytes,) uint8, contiguous
FRAME_OFFSET = "frame/offset"  # (F + 1,) uint64
FRAME_TYPE = "frame/type"  # (F,) S1: I, P or B; with transcode never perhaps S
FRAME_PTS = "frame/pts_seconds"  # (F,) float64, seconds since the source's first frame, in segments, too
KEYFRAME_JPEG = "keyframe/jpeg"
KEYFRAME_OFFSET = "keyframe/offset"  # (K + 1,) uint64
KEYFRAME_INDEX = "keyframe/frame_index"  # (K,) int64, frame number within its video
MOTION_GRID = "motion/grid"  # (F, 2, gh, gw) int16, quarter pixels; channel 0 = dx, 1 = dy
MOTION_VALID = "motion/valid"  # (F, gh, gw) uint8, 1 where the stream has a vector
FAILURE_ROW = "failure/row"  # (N,) int64
FAILURE_ID = "failure/id"
FAILURE_PATH = "failure/path"
FAILURE_STAGE = "failure/stage"
FAILURE_REASON = "failure/reason"

# A window of 8 frames needs 2.75 chunks of 4 on average, and unpacks 11 frames for its 8; chunks of 8 would unpack 15.
MOTION_CHUNK_FRAMES = 4
# Masks are nearly all ones, so that unpacking one costs less than the call for it.
VALID_CHUNK_FRAMES = 16


class Damage(IntFlag):
    """What is known to be wrong with a source of which frames could be had all the same."""

    NONE = 0
    DECODE_ERRORS = 1
    FRAMES_MISSING = 2

    @property
    def text(self) -> str:
        """For people."""
        return ", ".join(flag.name.replace("_", " ").lower() for flag in Damage if flag in self and flag.name)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class VideoRecord:
    """One manifest row.

    Attributes:
        row: position in the manifest, 0-based, header not counted.
        video_id: unique name of the video.
        path: where the file lies; absolute, or relative to the manifest's root.
        label: class name, empty if unlabelled.
        group: name of what several videos share (scene, source film, person), empty if unknown.
        splits: split column name to part (``train``, ``test``, ...); an empty part means neither.
    """

    row: int
    video_id: str
    path: str
    label: str = ""
    group: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.row >= 0, f"row: {self.row} is negative")
        _require(bool(self.video_id), f"video_id: row {self.row} has an empty id")
        _require(bool(self.path), f"path: row {self.row} ({self.video_id}) has an empty path")


@dataclass(frozen=True, kw_only=True)
class MotionGrid:
    """Motion vectors of T consecutive frames on a regular grid.

    Attributes:
        grid_quarter_px: (T, 2, gh, gw) int16; displacement of the content (destination minus source) in quarter
            pixels of the canonical stream, channel 0 = dx (right positive), 1 = dy (down positive); 0 where invalid.
        valid: (T, gh, gw) bool; False for intra blocks and where the stream has no vector.
    """

    grid_quarter_px: NDArray[np.int16]
    valid: NDArray[np.bool_]

    def __post_init__(self) -> None:
        grid, valid = self.grid_quarter_px, self.valid
        _require(grid.dtype == np.int16 and grid.ndim == 4 and grid.shape[1] == 2, f"grid_quarter_px: {grid.shape}")
        _require(valid.dtype == np.bool_, f"valid: dtype {valid.dtype}, need bool")
        _require(valid.shape == (grid.shape[0], *grid.shape[2:]), f"valid: {valid.shape} beside grid {grid.shape}")

    def __len__(self) -> int:
        return len(self.grid_quarter_px)


@dataclass(frozen=True, kw_only=True)
class VideoEntry:
    """What a shard says of one of its videos.

    Attributes:
        row, video_id, label, group, splits: as in the manifest.
        frame_count: number of frames F_v; JPEG frames, frame types, time stamps and motion all have this length.
        fps: mean frames per second; 0 if nothing tells.
        source_width, source_height: size of the source's pictures in pixels, before any rotation.
        codec: FFmpeg's name of the source codec.
        fingerprint: SHA-256 of the source file.
        keyframe_indices: frame numbers of the stored keyframes, ascending.
        shard: number of the shard in its index.
        position: number of the video within its shard.
    """

    row: int
    video_id: str
    label: str
    group: str
    splits: Mapping[str, str]
    frame_count: int
    fps: float
    source_width: int
    source_height: int
    codec: str
    fingerprint: str
    keyframe_indices: tuple[int, ...]
    shard: int
    position: int

    def __post_init__(self) -> None:
        _require(self.frame_count > 0, f"frame_count: {self.video_id} has {self.frame_count} frames, need at least 1")
        _require(bool(self.keyframe_indices), f"keyframe_indices: {self.video_id} has none")


@dataclass(frozen=True, kw_only=True)
class ShardHeader:
    """The attributes of a shard that its videos share.

    Attributes:
        config: the resolved extraction configuration.
        config_hash: hash of it, see ``hash_json``.
        canonical_width, canonical_height: size in pixels of the stream that vectors and keyframes refer to.
        frame_width, frame_height: size in pixels of the small JPEG frames; they show the same picture.
        cell_px: side of a grid cell in canonical pixels.
    """

    config: Mapping[str, Any]
    config_hash: str
    canonical_width: int
    canonical_height: int
    frame_width: int
    frame_height: int
    cell_px: int

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the motion grid; the last of each may lie partly outside the picture."""
        return grid_shape(self.canonical_width, self.canonical_height, self.cell_px)


def grid_shape(width: int, height: int, cell_px: int) -> tuple[int, int]:
    """Rows and columns of cells that cover a picture of ``width`` x ``height`` pixels."""
    return -(-height // cell_px), -(-width // cell_px)


def hash_json(value: Any) -> str:
    """SHA-256 (hex) of a JSON-serialisable value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_records(records: tuple[VideoRecord, ...]) -> str:
    """Hash of the manifest rows that a shard is made of; order counts."""
    rows = [[r.row, r.video_id, r.path, r.label, r.group, sorted(r.splits.items())] for r in records]
    return hash_json(rows)


FailedRow = tuple[int, str, str, str]
"""Manifest row, path, stage, reason."""
DamagedRow = tuple[int, str, str]
"""Manifest row, id of the video, what is wrong with its source."""
