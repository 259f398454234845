"""Reading of shards: lazy, read-only, without locks; every process opens its own files.

Frames, keyframes and motion are read from the file directly, each clip with few reads; HDF5 is only used to locate
them, which takes a millisecond per shard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cmd_extract import schema
from cmd_extract.errors import ShardError
from cmd_extract.schema import Damage, DamagedRow, FailedRow, MotionGrid, NoteRow, ShardHeader, VideoEntry
from cmd_extract.shard.file import OpenShard, open_hdf5, read_entries, read_header, read_texts
from cmd_extract.system.reading import OpenFiles, read_ranges

_SHARD_KEYS = {"name", "sha256", "size_bytes", "videos", "frames", "failures", "damaged", "rows", "rows_hash"}


class ShardReader:
    """Reader of one shard. It can be pickled and used after a fork: each process opens the file itself.

    Args:
        path: the HDF5 file.
        number: index of the shard in the output folder.
        files: open descriptors, shared with the readers of other shards; None for its own.
    """

    def __init__(self, path: Path, number: int = 0, files: OpenFiles | None = None) -> None:
        self.path = path
        self.number = number
        self._files = files or OpenFiles()
        self._opened: OpenShard | None = None
        self._handles: dict[int, h5py.File] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": None, "_handles": {}}

    @property
    def _h5(self) -> h5py.File:
        # A handle opened before a fork reads garbage, therefore handles are stored by process id.
        pid = os.getpid()
        if pid not in self._handles:
            self._handles.clear()
            self._files.prepare(self.path)
            self._handles[pid] = open_hdf5(self.path)
        return self._handles[pid]

    @property
    def _data(self) -> OpenShard:
        """Location of the data; HDF5 is not needed to read them."""
        if self._opened is None:
            self._files.prepare(self.path)
            with open_hdf5(self.path) as file:
                self._opened = OpenShard(self.path, file, self._files)
        return self._opened

    def close(self) -> None:
        """Close the file; the next access opens it again."""
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()
        self._opened = None
        self._files.close(self.path)

    @property
    def header(self) -> ShardHeader:
        """Configuration and sizes, common to all videos of the shard."""
        return read_header(self._h5)

    @property
    def rows_hash(self) -> str:
        """Hash of the manifest rows that the shard was made from, see ``schema.hash_records``."""
        return str(self._h5.attrs[schema.ATTR_ROWS_HASH])

    def entries(self, columns: Mapping[str, Sequence[str]]) -> tuple[VideoEntry, ...]:
        """Return the videos in manifest order.

        Args:
            columns: label, group and split columns of the index, see ``read_columns``.
        """
        return read_entries(self._h5, self.number, columns)

    @property
    def frame_count(self) -> int:
        """Number of frames of all videos."""
        return int(self._h5[schema.VIDEO_FRAME_COUNT][:].sum())

    def video_rows(self) -> NDArray[np.int64]:
        """Return (V,) int64, the manifest row of each video; segments of one video share it."""
        rows: NDArray[np.int64] = self._h5[schema.VIDEO_ROW][:]
        return rows

    def source_bytes(self) -> NDArray[np.int64]:
        """Return (V,) int64, the size of each video's source file when it was extracted."""
        sizes: NDArray[np.int64] = self._h5[schema.VIDEO_SOURCE_BYTES][:]
        return sizes

    def row_ids(self) -> dict[int, str]:
        """Return the id of every manifest row of the shard, including failed rows."""
        file = self._h5
        ids = dict(zip(self.video_rows().tolist(), read_texts(file, schema.VIDEO_ID), strict=True))
        if self.header.config.get("segment_seconds") is not None:
            ids = {row: video_id.rpartition("#")[0] for row, video_id in ids.items()}
        failed = zip(file[schema.FAILURE_ROW][:].tolist(), read_texts(file, schema.FAILURE_ID), strict=True)
        return ids | dict(failed)

    def failures(self) -> list[FailedRow]:
        """Return the manifest rows that could not be extracted."""
        file = self._h5
        rows = file[schema.FAILURE_ROW][:].tolist()
        texts = [read_texts(file, name) for name in (schema.FAILURE_PATH, schema.FAILURE_STAGE, schema.FAILURE_REASON)]
        return [FailedRow(*row) for row in zip(rows, *texts, strict=True)]

    def damaged(self) -> list[DamagedRow]:
        """Return the videos whose sources are known to be damaged."""
        file = self._h5
        damage = file[schema.VIDEO_DAMAGE][:]
        rows, ids = self.video_rows().tolist(), read_texts(file, schema.VIDEO_ID)
        return [DamagedRow(rows[i], ids[i], Damage(int(damage[i])).text) for i in damage.nonzero()[0]]

    def notes(self) -> list[NoteRow]:
        """Return the videos about whose extraction there is a note."""
        file = self._h5
        if schema.VIDEO_NOTE not in file:
            return []
        texts = (read_texts(file, schema.VIDEO_ID), read_texts(file, schema.VIDEO_NOTE))
        return [NoteRow(*row) for row in zip(self.video_rows().tolist(), *texts, strict=True) if row[2]]

    def frame_jpegs(self, position: int, frames: Sequence[int]) -> list[memoryview]:
        """Return the JPEGs of some frames of the video at ``position``, in this order; empty without small frames.

        Raises:
            IndexError: a frame number is out of range.
        """
        data = self._data
        first, count = int(data.first_frame[position]), int(data.frame_counts[position])
        for frame in frames:
            if not 0 <= frame < count:
                raise IndexError(f"frame {frame} of video {position} in {self.path.name}, which has {count} frames")
        if not frames:
            return []
        low = min(frames)
        offsets = data.rows(schema.FRAME_OFFSET, first + low, first + max(frames) + 2) + data.position(
            schema.FRAME_JPEG
        )
        ranges = [(int(offsets[frame - low]), int(offsets[frame - low + 1])) for frame in frames]
        return read_ranges(data.read, ranges)

    def keyframe_jpeg(self, position: int, keyframe: int) -> memoryview:
        """Return the JPEG of the keyframe with index ``keyframe`` of the video at ``position``.

        Raises:
            IndexError: the index is out of range.
        """
        data = self._data
        first, end = data.first_keyframe[position : position + 2].tolist()
        row = first + keyframe
        if not first <= row < end:
            raise IndexError(
                f"keyframe {keyframe} of video {position} in {self.path.name}, which has {end - first} keyframes"
            )
        start, stop = data.rows(schema.KEYFRAME_OFFSET, row, row + 2).tolist()
        return memoryview(data.read(data.position(schema.KEYFRAME_JPEG) + start, stop - start))

    def motion(self, position: int, start: int, stop: int) -> MotionGrid:
        """Return the motion of frames ``start`` to ``stop`` - 1 of the video at ``position``.

        Raises:
            IndexError: a frame number is out of range.
            OSError: the data cannot be decompressed.
        """
        data, count = self._data, max(stop - start, 0)  # an open HDF5 file per shard would be too many
        grid = np.empty((count, *data.motion_grid.row_shape), np.int16)
        valid = np.empty((count, *data.motion_valid.row_shape), np.bool_)
        self.read_motion(position, start, grid, valid)
        return MotionGrid(grid_quarter_px=grid, valid=valid)

    def read_motion(self, position: int, start: int, grid: NDArray[np.int16], valid: NDArray[np.bool_]) -> None:
        """Read the motion of T consecutive frames of the video at ``position`` into arrays.

        Args:
            position: index of the video in the shard.
            start: first frame.
            grid: (T, 2, gh, gw) int16, contiguous; receives quarter pixels, channel 0 = dx, 1 = dy.
            valid: (T, gh, gw) bool, contiguous; receives the validity mask.

        Raises:
            IndexError: a frame number is out of range.
            OSError: the data cannot be decompressed.
        """
        data = self._data
        first, count, stop = int(data.first_frame[position]), int(data.frame_counts[position]), start + len(grid)
        if not 0 <= start <= stop <= count:
            raise IndexError(
                f"frames {start} to {stop - 1} of video {position} in {self.path.name}, which has {count} frames"
            )
        data.motion_grid.read_into(first + start, grid)
        data.motion_valid.read_into(first + start, valid)

    def frame_types(self, position: int) -> NDArray[np.bytes_]:
        """Return (F,) S1, the type of each frame in the stream that the vectors come from."""
        return self._data.video_rows(schema.FRAME_TYPE, position)

    def pts_seconds(self, position: int) -> NDArray[np.float64]:
        """Return (F,) float64, seconds since the first frame of the source; later segments do not start at 0."""
        return self._data.video_rows(schema.FRAME_PTS, position)


class ShardSet:
    """All shards of an output folder as one sequence of videos.

    Args:
        folder: output folder of ``cmd-extract run``.
        files: opens the shards; None for local files.

    Attributes:
        folders: the folder, as a tuple of one (see ``cmd_extract.shard.folders``).
        videos: all videos, in manifest order.
        header: configuration and sizes, common to all videos.
        config_hash: hash of the extraction configuration.
        data_hash: hash of the shards' content and of the labels, groups and splits.

    Raises:
        ShardError: the folder contains no complete extraction, or shards that do not belong together.
    """

    def __init__(self, folder: Path, files: OpenFiles | None = None) -> None:
        self.folders: tuple[Path, ...] = (folder,)
        index = read_index(folder)
        self.config_hash: str = index["config_hash"]
        columns = read_columns(folder, index)
        self.data_hash = schema.hash_json([[shard["sha256"] for shard in index["shards"]], columns])
        files = files or OpenFiles()
        self._readers = [ShardReader(folder / s["name"], i, files) for i, s in enumerate(index["shards"])]
        videos: list[VideoEntry] = []
        for reader, listed in zip(self._readers, index["shards"], strict=True):
            self.header = reader.header
            if self.header.config_hash != self.config_hash:
                raise ShardError(
                    f"{reader.path}: configuration does not match {folder / schema.INDEX_NAME}; {_repair_hint(folder)}"
                )
            if reader.rows_hash != listed["rows_hash"]:
                raise ShardError(
                    f"{reader.path}: manifest rows do not match {folder / schema.INDEX_NAME}; {_repair_hint(folder)}"
                )
            videos += reader.entries(columns)
            reader.close()
        if not videos:
            raise ShardError(f"{folder}: all videos failed, see {folder / schema.FAILURES_NAME}")
        self.videos = tuple(videos)

    def frame_jpegs(self, entry: VideoEntry, frames: Sequence[int]) -> list[memoryview]:
        """Return the JPEGs of some frames of a video, ``header.frame_width`` x ``frame_height`` pixels each.

        They are empty if the shards were extracted with ``--no-frames``.

        Raises:
            IndexError: a frame number is out of range.
        """
        return self._readers[entry.shard].frame_jpegs(entry.position, frames)

    def keyframe_jpeg(self, entry: VideoEntry, keyframe: int) -> memoryview:
        """Return the JPEG of the keyframe at frame ``entry.keyframe_indices[keyframe]``, of the canonical size.

        Raises:
            IndexError: the index is out of range.
        """
        return self._readers[entry.shard].keyframe_jpeg(entry.position, keyframe)

    def motion(self, entry: VideoEntry, start: int, stop: int) -> MotionGrid:
        """Return the motion of frames ``start`` to ``stop`` - 1 of a video; raises like ``ShardReader.motion``."""
        return self._readers[entry.shard].motion(entry.position, start, stop)

    def read_motion(self, entry: VideoEntry, start: int, grid: NDArray[np.int16], valid: NDArray[np.bool_]) -> None:
        """Read the motion of consecutive frames of a video into arrays, see ``ShardReader.read_motion``."""
        self._readers[entry.shard].read_motion(entry.position, start, grid, valid)

    def pts_seconds(self, entry: VideoEntry) -> NDArray[np.float64]:
        """Return (F,) float64, see ``ShardReader.pts_seconds``."""
        return self._readers[entry.shard].pts_seconds(entry.position)

    def frame_types(self, entry: VideoEntry) -> NDArray[np.bytes_]:
        """Return (F,) S1, see ``ShardReader.frame_types``."""
        return self._readers[entry.shard].frame_types(entry.position)


def read_index(folder: Path, name: str = schema.INDEX_NAME) -> dict[str, Any]:
    """Return the content of ``index.json`` of an output folder, or of another index.

    Raises:
        ShardError: the file is missing, invalid, or of another format version.
    """
    path = folder / name
    try:
        index: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if (folder / schema.PREVIOUS_INDEX_NAME).exists():
            raise ShardError(
                f"{folder}: a retry, repair or run that replaces shards is in progress or was interrupted; once it has "
                "ended, run the same command again to complete it"
            ) from None
        raise ShardError(
            f"{folder}: no {name} found; pass a folder that `cmd-extract run` has completed (to continue "
            "an interrupted extraction, run the same command again)"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise ShardError(f"{path}: cannot be read ({error}); run `cmd-extract run` again to rebuild it") from None
    if not isinstance(index, dict):
        raise ShardError(f"{path}: not an index of shards; run `cmd-extract run` again to rebuild it")
    if index.get("format") != schema.FORMAT_NAME or index.get("version") not in schema.READABLE_VERSIONS:
        raise ShardError(
            f"{path}: format {index.get('format')!r} version {index.get('version')}, {schema.READS} of "
            f"{schema.FORMAT_NAME!r}; extract again, or use the release that wrote it"
        )
    if not _is_complete(index):
        raise ShardError(f"{path}: incomplete or edited; run `cmd-extract run` again to rebuild it")
    return index


def _is_complete(index: dict[str, Any]) -> bool:
    types = {"config_hash": str, "config": dict, "totals": dict, "shards": list}
    if not all(isinstance(index.get(name), kind) for name, kind in types.items()):
        return False
    return all(
        isinstance(shard, dict) and set(shard) >= _SHARD_KEYS and isinstance(shard["rows"], list)
        for shard in index["shards"]
    )


def read_columns(folder: Path, index: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the label, group and split columns of an index, one value per manifest row; see ``schema.columns_of``.

    Args:
        folder: the output folder.
        index: its ``index.json``.

    Raises:
        ShardError: the columns are missing or do not cover the manifest rows.
    """
    rows = max((shard["rows"][1] for shard in index["shards"]), default=0)
    found = index.get("columns")
    columns: dict[str, list[str]] = found if isinstance(found, dict) else {}
    lengths = {len(cells) if isinstance(cells, list) else -1 for cells in columns.values()}
    if not {"label", "group"} <= set(columns) or lengths != {rows}:
        raise ShardError(
            f"{folder / schema.INDEX_NAME}: no label, group and split columns for the {rows} manifest rows; run "
            "`cmd-extract run` again to rebuild it, or extract again if an earlier version wrote it"
        )
    return columns


def _repair_hint(folder: Path) -> str:
    return f"run `cmd-extract verify {folder} --repair` to build the shard again"
