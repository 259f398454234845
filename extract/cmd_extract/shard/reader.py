"""Reading of shards: lazy, read-only, without locks; every process opens its own files.

Frames, keyframes and motion are read from the file directly, each clip with few reads; HDF5 is only used to locate
them, which takes a millisecond per shard.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from cmd_extract import schema
from cmd_extract.errors import ShardError
from cmd_extract.schema import Damage, DamagedRow, FailedRow, MotionGrid, NoteRow, ShardHeader, VideoEntry
from cmd_extract.shard.file import OpenShard, open_hdf5, read_header, read_texts, read_video_columns
from cmd_extract.shard.index import IndexedVideos, ShardIndex
from cmd_extract.shard.videos import Videos
from cmd_extract.system.reading import OpenFiles, read_ranges


class ExpectedShard(NamedTuple):
    """What an index says of a shard.

    Attributes:
        config_hash: hash of the configuration.
        rows_hash: hash of the manifest rows.
        source: path of the index.
    """

    config_hash: str
    rows_hash: str
    source: Path


class ShardReader:
    """Reader of one shard. It can be pickled and used after a fork: each process opens the file itself.

    Args:
        path: the HDF5 file.
        files: open descriptors, shared with the readers of other shards; None for its own.
        expected: checked each time the file is opened; None to check nothing.
    """

    def __init__(self, path: Path, files: OpenFiles | None = None, expected: ExpectedShard | None = None) -> None:
        self.path = path
        self._files = files or OpenFiles()
        self._expected = expected
        self._opened: OpenShard | None = None
        self._handles: dict[int, h5py.File] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": None, "_handles": {}}

    def _open(self) -> h5py.File:
        self._files.prepare(self.path)
        file = open_hdf5(self.path)
        if self._expected is None:
            return file
        found = (str(file.attrs[schema.ATTR_CONFIG_HASH]), str(file.attrs[schema.ATTR_ROWS_HASH]))
        if found == self._expected[:2]:
            return file
        file.close()
        what = "configuration does" if found[0] != self._expected.config_hash else "manifest rows do"
        raise ShardError(
            f"{self.path}: {what} not match {self._expected.source}; run `cmd-extract verify {self.path.parent} "
            "--repair` to build the shard again"
        )

    @property
    def _h5(self) -> h5py.File:
        # A handle opened before a fork reads garbage, therefore handles are stored by process id.
        pid = os.getpid()
        if pid not in self._handles:
            self._handles.clear()
            self._handles[pid] = self._open()
        return self._handles[pid]

    @property
    def _data(self) -> OpenShard:
        """Location of the data; HDF5 is not needed to read them."""
        if self._opened is None:
            with self._open() as file:
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

    def video_columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns of the videos that the index stores, see ``cmd_extract.shard.index_format``."""
        return read_video_columns(self._h5)

    def codecs(self) -> list[str]:
        """Return FFmpeg's name of the source codec of each video."""
        return read_texts(self._h5, schema.VIDEO_CODEC)

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
        data, count = self._data, max(stop - start, 0)
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
        ShardError: the folder contains no complete extraction, shards are missing or do not match the index, or all
            videos failed.
    """

    def __init__(self, folder: Path, files: OpenFiles | None = None) -> None:
        self.folders: tuple[Path, ...] = (folder,)
        self._index = ShardIndex(folder)
        self.config_hash, self.data_hash = self._index.config_hash, self._index.data_hash
        self.videos: Videos = IndexedVideos(self._index)
        if not self.videos:
            raise ShardError(f"{folder}: all videos failed, see {folder / schema.FAILURES_NAME}")
        if files is None:
            self._check_local()
        self._files, self._readers = files or OpenFiles(), dict[int, ShardReader]()
        self.header = self._reader(0).header
        self._reader(0).close()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_readers": {}}

    def _check_local(self) -> None:
        folder = self._index.folder
        with os.scandir(folder) as files:
            missing = set(map(schema.SHARD_PATTERN.format, range(len(self._index)))) - {file.name for file in files}
        if missing:
            raise ShardError(
                f"{folder / min(missing)}: missing; run `cmd-extract verify {folder} --repair` to build the shard again"
            )

    @property
    def shard_count(self) -> int:
        """Number of shards."""
        return len(self._index)

    @property
    def totals(self) -> dict[str, int]:
        """Totals over all shards: videos, frames, failures, damaged, size_bytes."""
        return self._index.totals

    def _reader(self, shard: int) -> ShardReader:
        if shard not in self._readers:
            index, entry = self._index, self._index.shard(shard)
            expected = ExpectedShard(index.config_hash, entry.rows_hash, index.folder / index.name)
            self._readers[shard] = ShardReader(index.folder / entry.name, self._files, expected)
        return self._readers[shard]

    def frame_jpegs(self, entry: VideoEntry, frames: Sequence[int]) -> list[memoryview]:
        """Return the JPEGs of some frames of a video, ``header.frame_width`` x ``frame_height`` pixels each.

        They are empty if the shards were extracted with ``--no-frames``.

        Raises:
            IndexError: a frame number is out of range.
        """
        return self._reader(entry.shard).frame_jpegs(entry.position, frames)

    def keyframe_jpeg(self, entry: VideoEntry, keyframe: int) -> memoryview:
        """Return the JPEG of the keyframe at frame ``entry.keyframe_indices[keyframe]``, of the canonical size.

        Raises:
            IndexError: the index is out of range.
        """
        return self._reader(entry.shard).keyframe_jpeg(entry.position, keyframe)

    def motion(self, entry: VideoEntry, start: int, stop: int) -> MotionGrid:
        """Return the motion of frames ``start`` to ``stop`` - 1 of a video; raises like ``ShardReader.motion``."""
        return self._reader(entry.shard).motion(entry.position, start, stop)

    def read_motion(self, entry: VideoEntry, start: int, grid: NDArray[np.int16], valid: NDArray[np.bool_]) -> None:
        """Read the motion of consecutive frames of a video into arrays, see ``ShardReader.read_motion``."""
        self._reader(entry.shard).read_motion(entry.position, start, grid, valid)

    def pts_seconds(self, entry: VideoEntry) -> NDArray[np.float64]:
        """Return (F,) float64, see ``ShardReader.pts_seconds``."""
        return self._reader(entry.shard).pts_seconds(entry.position)

    def frame_types(self, entry: VideoEntry) -> NDArray[np.bytes_]:
        """Return (F,) S1, see ``ShardReader.frame_types``."""
        return self._reader(entry.shard).frame_types(entry.position)
