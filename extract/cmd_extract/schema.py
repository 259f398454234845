"""Shard format, version 2: names, dtypes and record types shared by the writer and the reader.

One HDF5 file holds the videos of consecutive manifest rows. Columns are flat across videos and addressed by offsets.
Importing this module loads neither torch nor a decoder. ``extract/README.md`` documents the format for other readers.

Shape legend: V videos, F frames of all videos, K keyframes of all videos, N failures, gh x gw grid cells.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmd_extract.system.validation import require

FORMAT_NAME = "context-motion-shard"
FORMAT_VERSION = 2
"""Layout of a shard: raised whenever a reader would have to change."""
INDEX_VERSION = 3
"""Layout of the index and its table; ``cmd-extract merge`` replaces an older one."""
EXTRACTOR_VERSION = 1
"""Content of a shard: raised whenever the same settings would give other bytes."""

QUARTER_PX = 4
"""Stored motion units per pixel of the canonical stream."""

INDEX_NAME = "index.json"
INDEX_TABLE_PATTERN = "index-{}.h5"
"""File name of the table of the index; contains the start of its SHA-256."""
PREVIOUS_INDEX_NAME = "index.previous.json"
"""Name of the index while shards that it describes are being replaced."""
FAILURES_NAME = "failures.csv"
DAMAGED_NAME = "damaged.csv"
NOTES_NAME = "notes.csv"
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

# Datasets. Strings in datasets are fixed-length UTF-8, strings in attributes have variable length.
VIDEO_ROW = "video/row"  # (V,) int64, manifest row, 0-based
VIDEO_ID = "video/id"
VIDEO_FRAME_COUNT = "video/frame_count"  # (V,) int64
VIDEO_FPS = "video/fps"  # (V,) float64, mean frames per second: (frames - 1) / their time span
VIDEO_SOURCE_SIZE = "video/source_size"  # (V, 2) int32, width and height in pixels before rotation
VIDEO_CODEC = "video/codec"
VIDEO_FINGERPRINT = "video/fingerprint"  # (V,) S64, SHA-256 of the source file's bytes
VIDEO_SOURCE_BYTES = "video/source_bytes"  # (V,) int64, size of the source file
VIDEO_OWN_VECTORS = "video/own_vectors"  # (V,) uint8, 1: vectors of the source, 0: of the canonical stream
VIDEO_DAMAGE = "video/damage"  # (V,) uint8, bitwise OR of Damage flags, 0 if no damage is known
VIDEO_NOTE = "video/note"  # what a user should know about the extraction; absent if no video has a note
VIDEO_FIRST_FRAME = "video/first_frame"  # (V,) uint64
VIDEO_FIRST_KEYFRAME = "video/first_keyframe"  # (V,) uint64
FRAME_JPEG = "frame/jpeg"  # (bytes,) uint8, contiguous
FRAME_OFFSET = "frame/offset"  # (F + 1,) uint64
FRAME_TYPE = "frame/type"  # (F,) S1: I, P or B; other types such as S only with transcode "never"
FRAME_PTS = "frame/pts_seconds"  # (F,) float64, seconds since the first frame of the source, also in segments
KEYFRAME_JPEG = "keyframe/jpeg"
KEYFRAME_OFFSET = "keyframe/offset"  # (K + 1,) uint64
KEYFRAME_INDEX = "keyframe/frame_index"  # (K,) int64, frame number within its video
MOTION_GRID = "motion/grid"  # (F, 2, gh, gw) int16, quarter pixels; channel 0 = dx, 1 = dy
MOTION_VALID = "motion/valid"  # (F, gh, gw) uint8, 1 where the stream has a vector
MOTION_GRID_CHUNK = "motion/grid_chunk"  # (C, 3) uint64: position in the file, bytes, filter mask of each chunk
MOTION_VALID_CHUNK = "motion/valid_chunk"
FAILURE_ROW = "failure/row"  # (N,) int64
FAILURE_ID = "failure/id"
FAILURE_PATH = "failure/path"
FAILURE_STAGE = "failure/stage"
FAILURE_REASON = "failure/reason"

# On average a window of 8 frames touches 2.75 chunks of 4 and decompresses 11 frames; with chunks of 8 it would be 15.
MOTION_CHUNK_FRAMES = 4
# Masks are almost all ones: decompressing a large chunk costs less than one more call.
VALID_CHUNK_FRAMES = 16


class Damage(IntFlag):
    """Known damage of a source from which frames could still be extracted."""

    NONE = 0
    DECODE_ERRORS = 1
    FRAMES_MISSING = 2
    TIMES_REPAIRED = 4

    @property
    def text(self) -> str:
        """Human-readable description."""
        return ", ".join(flag.name.replace("_", " ").lower() for flag in Damage if flag in self and flag.name)


@dataclass(frozen=True, kw_only=True)
class VideoRecord:
    """One manifest row.

    Attributes:
        row: position in the manifest, 0-based, header not counted.
        video_id: unique name of the video.
        path: path of the file; absolute, or relative to the manifest's root.
        label: class name, empty if unlabeled.
        group: scene, source film or person that several videos share, empty if unknown.
        splits: maps each split column to the video's part (``train``, ``test``, ...), empty if it is in none.
    """

    row: int
    video_id: str
    path: str
    label: str = ""
    group: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.row >= 0, f"row: must be at least 0, got {self.row}")
        require(bool(self.video_id), f"video_id: row {self.row} has an empty id")
        require(bool(self.path), f"path: row {self.row} ({self.video_id}) has an empty path")


@dataclass(frozen=True, kw_only=True)
class MotionGrid:
    """Motion vectors of T consecutive frames on a regular grid.

    Attributes:
        grid_quarter_px: (T, 2, gh, gw) int16, displacement of the content (destination minus source) in quarter
            pixels of the canonical stream; channel 0 = dx (right positive), 1 = dy (down positive); 0 where invalid.
        valid: (T, gh, gw) bool, False for intra blocks and other cells without a vector.
    """

    grid_quarter_px: NDArray[np.int16]
    valid: NDArray[np.bool_]

    def __post_init__(self) -> None:
        grid, valid = self.grid_quarter_px, self.valid
        require(
            grid.dtype == np.int16 and grid.ndim == 4 and grid.shape[1] == 2,
            f"grid_quarter_px: expected (T, 2, gh, gw) int16, got {grid.shape} {grid.dtype}",
        )
        require(
            valid.dtype == np.bool_ and valid.shape == (grid.shape[0], *grid.shape[2:]),
            f"valid: expected {(grid.shape[0], *grid.shape[2:])} bool, got {valid.shape} {valid.dtype}",
        )

    def __len__(self) -> int:
        return len(self.grid_quarter_px)


@dataclass(frozen=True, kw_only=True)
class VideoEntry:
    """Metadata of one video in a shard.

    Attributes:
        row, video_id, label, group, splits: as in the manifest.
        frame_count: number of frames, the length of the video's JPEG frames, frame types, timestamps and motion.
        fps: mean frames per second, 0 if unknown.
        source_width, source_height: frame size of the source in pixels, before any rotation.
        codec: FFmpeg's name of the source codec.
        fingerprint: SHA-256 of the source file.
        keyframe_indices: frame numbers of the stored keyframes, ascending.
        shard: index of the shard in the output folder.
        position: index of the video in its shard.
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
        require(self.frame_count > 0, f"frame_count: {self.video_id!r} has no frames ({self.frame_count})")
        require(bool(self.keyframe_indices), f"keyframe_indices: {self.video_id!r} has no keyframes")


@dataclass(frozen=True, kw_only=True)
class ShardHeader:
    """Attributes of a shard, common to all its videos.

    Attributes:
        config: resolved extraction configuration, see ``ExtractConfig.describe``.
        config_hash: ``hash_json(config)``.
        canonical_width, canonical_height: size in pixels of the stream that vectors and keyframes refer to.
        frame_width, frame_height: size in pixels of the small JPEG frames, which show the same picture.
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
        """Rows and columns of the motion grid; the last row and column may extend beyond the frame."""
        return grid_shape(self.canonical_width, self.canonical_height, self.cell_px)


def grid_shape(width: int, height: int, cell_px: int) -> tuple[int, int]:
    """Return the rows and columns of cells that cover a frame of ``width`` x ``height`` pixels."""
    return -(-height // cell_px), -(-width // cell_px)


_HALF = 32  # of the digits of a hash


def hash_json(value: Any) -> str:
    """Return the SHA-256 (hex) of a JSON-serializable value in canonical form: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def join_hashes(everything: str, shards: str) -> str:
    """Return a data hash: half of the hash of shards, labels, groups and splits, then half of that of the shards."""
    return everything[:_HALF] + shards[:_HALF]


def join_data_hashes(hashes: Sequence[str]) -> str:
    """Return the data hash of several folders."""
    return join_hashes(hash_json(hashes), hash_json([each[_HALF:] for each in hashes]))


def is_relabeled(data_hash: str | None, other: str | None) -> bool:
    """Return whether two data hashes are of the same shards with other labels, groups or splits."""
    if not data_hash or not other or data_hash == other:
        return False
    return bool(data_hash[_HALF:]) and data_hash[_HALF:] == other[_HALF:]


def hash_records(records: Sequence[VideoRecord]) -> str:
    """Return the hash of what decides the content of shards: row, id and path of manifest rows, in order.

    Labels, groups and splits are not part of it; they are stored in the index and may change.
    """
    rows, ids, paths = [r.row for r in records], [r.video_id for r in records], [r.path for r in records]
    return hashlib.sha256(f"[{','.join(row_texts(rows, ids, paths))}]".encode()).hexdigest()


def row_texts(rows: Sequence[int], ids: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Return the JSON text of each row as hashed by ``hash_records``: ASCII, without spaces between the values."""
    joined = "".join(ids) + "".join(paths)
    if joined.isascii() and joined.isprintable() and '"' not in joined and "\\" not in joined:
        # JSON escapes no character of these texts, and this takes a tenth of the time.
        return [f'[{row},"{video_id}","{path}"]' for row, video_id, path in zip(rows, ids, paths, strict=True)]
    values = zip(rows, ids, paths, strict=True)
    return [json.dumps(row, separators=(",", ":"), ensure_ascii=True) for row in values]


class FailedRow(NamedTuple):
    """Row of ``failures.csv``: a manifest row that could not be extracted.

    Attributes:
        row: manifest row.
        path: path of the file, as in the manifest.
        stage: one of ``cmd_extract.errors.STAGES``.
        reason: one line.
    """

    row: int
    path: str
    stage: str
    reason: str


class DamagedRow(NamedTuple):
    """Row of ``damaged.csv``: an extracted video whose source is damaged.

    Attributes:
        row: manifest row.
        video_id: id of the video.
        damage: ``Damage.text``.
    """

    row: int
    video_id: str
    damage: str


class NoteRow(NamedTuple):
    """Row of ``notes.csv``: what a user should know about the extraction of a video.

    Attributes:
        row: manifest row.
        video_id: id of the video.
        note: one line.
    """

    row: int
    video_id: str
    note: str
