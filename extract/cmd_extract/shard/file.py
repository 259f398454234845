"""A shard file opened by one process: its format is checked and its columns are located once."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cmd_extract import schema
from cmd_extract.errors import ShardError
from cmd_extract.schema import ShardHeader
from cmd_extract.shard import index_format as index
from cmd_extract.shard.locations import Column, find_column
from cmd_extract.system.reading import OpenFiles

if TYPE_CHECKING:
    from cmd_extract.shard.chunks import ChunkedRows

_COLUMNS = (
    schema.VIDEO_FRAME_COUNT,
    schema.VIDEO_FIRST_FRAME,
    schema.VIDEO_FIRST_KEYFRAME,
    schema.FRAME_JPEG,
    schema.FRAME_OFFSET,
    schema.KEYFRAME_JPEG,
    schema.KEYFRAME_OFFSET,
)


def open_hdf5(path: Path) -> h5py.File:
    """Open a shard with HDF5 and check its format.

    Raises:
        ShardError: the file is not a shard, or of a format version that this release does not read.
        PermissionError: it may not be read.
    """
    try:
        file = h5py.File(path, "r", locking=False)
    except PermissionError:
        raise
    except OSError as error:
        raise ShardError(
            f"{path}: not a readable HDF5 file ({error}); run `cmd-extract run` again to replace it"
        ) from None
    name, version = file.attrs.get(schema.ATTR_FORMAT), file.attrs.get(schema.ATTR_VERSION)
    if name != schema.FORMAT_NAME:
        problem = f"not a shard written by cmd-extract (format {name!r})"
    elif version != schema.FORMAT_VERSION:
        problem = (
            f"shard format version {version}, this release reads version {schema.FORMAT_VERSION}; extract again, or "
            "use the release that wrote it"
        )
    else:
        return file
    file.close()
    raise ShardError(f"{path}: {problem}")


class OpenShard:
    """Location of the data in a shard, which are then read from the file directly, without HDF5.

    Args:
        path: the HDF5 file.
        file: the same file, opened with ``open_hdf5``.
        files: open descriptors.

    Attributes:
        frame_counts: (V,) int64, number of frames of each video.
        first_frame: (V,) int64, first row of each video in the frame columns.
        first_keyframe: (V + 1,) int64, first row of each video in the keyframe columns, and the number of keyframes.
        motion_grid, motion_valid: motion grids and validity masks of all frames.

    Raises:
        OSError: the file has been replaced since it was opened.
    """

    def __init__(self, path: Path, file: h5py.File, files: OpenFiles) -> None:
        self.path = path
        self._files = files
        self._stamp = files.stamp(path)
        self._check_same(file)
        self._columns = {name: find_column(file, name) for name in _COLUMNS}
        self.frame_counts = self.rows(schema.VIDEO_FRAME_COUNT).astype(np.int64)
        self.first_frame = self.rows(schema.VIDEO_FIRST_FRAME).astype(np.int64)
        keyframes = self._columns[schema.KEYFRAME_OFFSET].shape[0] - 1
        self.first_keyframe = np.append(self.rows(schema.VIDEO_FIRST_KEYFRAME).astype(np.int64), keyframes)
        self.motion_grid = self._chunked_rows(file, schema.MOTION_GRID, schema.MOTION_GRID_CHUNK)
        self.motion_valid = self._chunked_rows(file, schema.MOTION_VALID, schema.MOTION_VALID_CHUNK)

    def _chunked_rows(self, file: h5py.File, name: str, table_name: str) -> ChunkedRows:
        # Blosc imports its own tests, which takes time that extraction does not need to spend.
        from cmd_extract.shard.chunks import ChunkedRows

        dataset = file[name]
        self._columns[table_name] = find_column(file, table_name)
        locations = partial(self.rows, table_name)
        return ChunkedRows(dataset.name, dataset.chunks, dataset.dtype, locations, self.read)

    def _check_same(self, file: h5py.File) -> None:
        """Check that the locations in ``file`` are those of the file that the data are read from."""
        found = os.fstat(file.id.get_vfd_handle())
        if (found.st_size, found.st_mtime_ns) != self._stamp:
            raise OSError(f"{self.path}: replaced while it was in use; start again")

    def read(self, start: int, count: int) -> bytes:
        """Read ``count`` bytes of the file from position ``start`` on."""
        return self._files.read(self.path, self._stamp, start, count)

    def position(self, name: str) -> int:
        """Return the position of a column in the file."""
        return self._columns[name].position

    def rows(self, name: str, first: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read rows ``first`` to ``stop`` - 1 of a column, at most as many as it has."""
        if name not in self._columns:
            self._files.prepare(self.path)
            with open_hdf5(self.path) as file:
                self._check_same(file)
                self._columns[name] = find_column(file, name)
        column: Column = self._columns[name]
        stop = column.shape[0] if stop is None else min(stop, column.shape[0])
        row_bytes = int(np.prod(column.shape[1:], dtype=np.int64)) * column.dtype.itemsize
        count = max(0, stop - first)
        data = self.read(column.position + first * row_bytes, count * row_bytes) if count else b""
        return np.frombuffer(data, column.dtype).reshape(count, *column.shape[1:])

    def video_rows(self, name: str, position: int) -> NDArray[Any]:
        """Return the rows of a frame column for the video at ``position``: (F, ...), F its frame count."""
        first = int(self.first_frame[position])
        return self.rows(name, first, first + int(self.frame_counts[position]))

    def close(self) -> None:
        """Close the descriptor of the file; the next access opens it again."""
        self._files.close(self.path)


def read_header(file: h5py.File) -> ShardHeader:
    """Return the configuration and sizes, common to all videos of a shard."""
    attrs = file.attrs
    width, height = (int(n) for n in attrs[schema.ATTR_CANONICAL_SIZE])
    frame_width, frame_height = (int(n) for n in attrs[schema.ATTR_FRAME_SIZE])
    return ShardHeader(
        config=json.loads(attrs[schema.ATTR_CONFIG]),
        config_hash=str(attrs[schema.ATTR_CONFIG_HASH]),
        canonical_width=width,
        canonical_height=height,
        frame_width=frame_width,
        frame_height=frame_height,
        cell_px=int(attrs[schema.ATTR_CELL]),
    )


def read_video_columns(file: h5py.File) -> dict[str, NDArray[Any]]:
    """Return the columns of a shard's videos that the index stores, see ``cmd_extract.shard.index_format``."""
    ids = [bytes(value) for value in file[schema.VIDEO_ID][:]]
    fingerprints = bytes.fromhex(b"".join(bytes(value) for value in file[schema.VIDEO_FINGERPRINT][:]).decode())
    keyframes = file[schema.KEYFRAME_INDEX][:]
    return {
        index.VIDEO_ROW: file[schema.VIDEO_ROW][:],
        index.VIDEO_FRAME_COUNT: file[schema.VIDEO_FRAME_COUNT][:],
        index.VIDEO_FPS: file[schema.VIDEO_FPS][:],
        index.VIDEO_SOURCE_SIZE: file[schema.VIDEO_SOURCE_SIZE][:],
        index.VIDEO_FINGERPRINT: np.frombuffer(fingerprints, np.uint8).reshape(-1, 32),
        index.VIDEO_FIRST_KEYFRAME: np.append(file[schema.VIDEO_FIRST_KEYFRAME][:], len(keyframes)).astype(np.int64),
        index.KEYFRAME_INDEX: keyframes,
        index.VIDEO_ID_FIRST: np.cumsum([0, *map(len, ids)], dtype=np.int64),
        index.VIDEO_ID: np.frombuffer(b"".join(ids), np.uint8),
    }


def read_texts(file: h5py.File, name: str) -> list[str]:
    """Return a text column; file names that are not UTF-8 keep their bytes."""
    return [bytes(value).decode("utf-8", "surrogateescape") for value in file[name][:]]
