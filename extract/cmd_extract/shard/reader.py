"""Reads shards: lazily, once per process, read-only and without locks.

JPEG bytes are mapped from the file, not copied through HDF5; motion is unpacked from the mapped file.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmd_extract import schema
from cmd_extract.errors import ShardError
from cmd_extract.schema import Damage, MotionGrid, ShardHeader, VideoEntry
from cmd_extract.shard.file import OpenShard, read_texts

_MAX_OPEN_SHARDS = 256


class ShardReader:
    """One shard.

    Safe to pickle and to use after a fork: each process opens the file for itself.

    Args:
        path: the HDF5 file.
        number: its number in the index.
    """

    def __init__(self, path: Path, number: int = 0) -> None:
        self.path = path
        self.number = number
        self._open_files: dict[int, OpenShard] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "number": self.number, "_open_files": {}}

    @property
    def _file(self) -> OpenShard:
        # A handle opened before a fork reads garbage, so handles are keyed by process.
        pid = os.getpid()
        if pid not in self._open_files:
            self._open_files.clear()
            self._open_files[pid] = OpenShard(self.path)
        return self._open_files[pid]

    def close(self) -> None:
        """Gives back this process's file handle; the next access opens it again."""
        for opened in self._open_files.values():
            opened.h5.close()
        self._open_files.clear()

    @property
    def header(self) -> ShardHeader:
        """Configuration and sizes shared by all videos of the shard."""
        return self._file.header

    @property
    def rows_hash(self) -> str:
        """Identifies the manifest rows that the shard was made of."""
        return str(self._file.h5.attrs[schema.ATTR_ROWS_HASH])

    def entries(self) -> tuple[VideoEntry, ...]:
        """The videos of the shard, in manifest order."""
        return self._file.entries(self.number)

    def failures(self) -> list[tuple[int, str, str, str]]:
        """Rows that gave no video: (row, path, stage, reason)."""
        file = self._file.h5
        rows = file[schema.FAILURE_ROW][:].tolist()
        texts = (read_texts(file, n) for n in (schema.FAILURE_PATH, schema.FAILURE_STAGE, schema.FAILURE_REASON))
        return list(zip(rows, *texts, strict=True))

    def damaged(self) -> list[tuple[int, str, Damage]]:
        """Videos of sources with known damage: (row, id, damage)."""
        file = self._file.h5
        if file.attrs[schema.ATTR_VERSION] == 1 and schema.VIDEO_DAMAGE not in file:
            return []
        damage = file[schema.VIDEO_DAMAGE][:]
        rows, ids = file[schema.VIDEO_ROW][:].tolist(), read_texts(file, schema.VIDEO_ID)
        return [(rows[i], ids[i], Damage(int(damage[i]))) for i in damage.nonzero()[0]]

    def source_bytes(self) -> list[int]:
        """Length in bytes of each video's source file when it was extracted."""
        sizes: list[int] = self._file.h5[schema.VIDEO_SOURCE_BYTES][:].tolist()
        return sizes

    def frame_jpegs(self, position: int, frames: Sequence[int]) -> list[memoryview]:
        """JPEG bytes of some frames of the video at ``position``, in the order asked for; empty without small frames.

        Raises:
            IndexError: the video has no such frame.
        """
        opened = self._file
        first = opened.first_frame[position]
        count = opened.frame_counts[position]
        out = []
        for frame in frames:
            if not 0 <= frame < count:
                raise IndexError(f"frame {frame} of video {position} in {self.path.name}, which has {count}")
            start, stop = opened.frame_offset[first + frame : first + frame + 2].tolist()
            out.append(opened.frame_bytes[start:stop])
        return out

    def keyframe_jpeg(self, position: int, keyframe: int) -> memoryview:
        """JPEG bytes of the ``keyframe``-th keyframe, from 0, of the video at ``position``.

        Raises:
            IndexError: the video has no such keyframe.
        """
        opened = self._file
        row = opened.first_keyframe[position] + keyframe
        if keyframe < 0 or row >= opened.first_keyframe[position + 1]:
            raise IndexError(f"keyframe {keyframe} of video {position} in {self.path.name}")
        start, stop = opened.keyframe_offset[row : row + 2].tolist()
        return opened.keyframe_bytes[start:stop]

    def motion(self, position: int, start: int, stop: int) -> MotionGrid:
        """Motion of frames ``start`` to ``stop`` - 1 of the video at ``position``, T = ``stop`` - ``start``.

        Raises:
            IndexError: the video has no such frames.
            OSError: what is stored cannot be unpacked.
        """
        shape = self.header.grid_shape
        grid = np.empty((max(stop - start, 0), 2, *shape), np.int16)
        valid = np.empty((len(grid), *shape), np.bool_)
        self.read_motion(position, start, grid, valid)
        return MotionGrid(grid_quarter_px=grid, valid=valid)

    def read_motion(self, position: int, start: int, grid: NDArray[np.int16], valid: NDArray[np.bool_]) -> None:
        """Motion of consecutive frames of the video at ``position``, written to its place.

        Args:
            position: of the video in the shard.
            start: first frame.
            grid: (T, 2, gh, gw) int16, contiguous; filled with quarter pixels, channel 0 = dx, 1 = dy.
            valid: (T, gh, gw) bool, contiguous; filled.

        Raises:
            IndexError: the video has no such frames.
            OSError: what is stored cannot be unpacked.
        """
        opened = self._file
        first, count, stop = opened.first_frame[position], opened.frame_counts[position], start + len(grid)
        if not 0 <= start <= stop <= count:
            raise IndexError(f"frames {start}-{stop} of video {position} in {self.path.name}, which has {count}")
        opened.motion_grid.read_into(first + start, grid)
        opened.motion_valid.read_into(first + start, valid)

    def frame_types(self, position: int) -> NDArray[np.bytes_]:
        """(F,) S1, type of each frame of the video in the stream that its vectors come from."""
        return self._file.column(schema.FRAME_TYPE, position)

    def pts_seconds(self, position: int) -> NDArray[np.float64]:
        """(F,) float64, seconds since the first frame of the source; those of a later segment do not begin at 0."""
        return self._file.column(schema.FRAME_PTS, position)


class ShardSet:
    """All shards of an output folder, as one list of videos.

    Args:
        folder: an output folder of ``cmd-extract run``.

    Raises:
        ShardError: no complete extraction lies there, or its shards do not belong together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = read_index(folder)
        self.config_hash: str = index["config_hash"]
        self.data_hash = schema.hash_json([shard["sha256"] for shard in index["shards"]])
        self._readers = [ShardReader(folder / s["name"], i) for i, s in enumerate(index["shards"])]
        self._recent: OrderedDict[int, None] = OrderedDict()
        videos: list[VideoEntry] = []
        for reader, listed in zip(self._readers, index["shards"], strict=True):
            self.header = reader.header
            if self.header.config_hash != self.config_hash:
                raise ShardError(f"{reader.path}: made with another configuration than {folder / schema.INDEX_NAME}")
            if reader.rows_hash != listed["rows_hash"]:
                raise ShardError(
                    f"{reader.path}: made of other manifest rows than {folder / schema.INDEX_NAME} says; "
                    f"`cmd-extract verify {folder} --repair` makes the right shard again"
                )
            videos += reader.entries()
            reader.close()
        if not videos:
            raise ShardError(f"{folder}: the extraction holds no video; see {folder / schema.FAILURES_NAME}")
        self.videos = tuple(videos)

    def _reader(self, entry: VideoEntry) -> ShardReader:
        """The entry's shard; the least recently used one is closed, so that handles never run out."""
        self._recent[entry.shard] = None
        self._recent.move_to_end(entry.shard)
        if len(self._recent) > _MAX_OPEN_SHARDS:
            oldest, _ = self._recent.popitem(last=False)
            self._readers[oldest].close()
        return self._readers[entry.shard]

    def frame_jpegs(self, entry: VideoEntry, frames: Sequence[int]) -> list[memoryview]:
        """JPEG bytes of some frames of a video, of ``header.frame_width`` x ``frame_height`` pixels.

        Raises:
            IndexError: the video has no such frame.
        """
        return self._reader(entry).frame_jpegs(entry.position, frames)

    def keyframe_jpeg(self, entry: VideoEntry, keyframe: int) -> memoryview:
        """JPEG bytes of the keyframe at number ``keyframe`` of ``entry.keyframe_indices``; canonical size.

        Raises:
            IndexError: the video has no such keyframe.
        """
        return self._reader(entry).keyframe_jpeg(entry.position, keyframe)

    def motion(self, entry: VideoEntry, start: int, stop: int) -> MotionGrid:
        """Motion of frames ``start`` to ``stop`` - 1 of a video; raises as ``ShardReader.motion``."""
        return self._reader(entry).motion(entry.position, start, stop)

    def read_motion(self, entry: VideoEntry, start: int, grid: NDArray[np.int16], valid: NDArray[np.bool_]) -> None:
        """Motion of consecutive frames of a video, written to its place; see ``ShardReader.read_motion``."""
        self._reader(entry).read_motion(entry.position, start, grid, valid)


def read_index(folder: Path) -> dict[str, Any]:
    """Reads ``index.json`` of an output folder.

    Raises:
        ShardError: there is none, or of another format version.
    """
    path = folder / schema.INDEX_NAME
    try:
        index: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ShardError(
            f"{folder}: no {schema.INDEX_NAME}; give a folder that `cmd-extract run` has finished "
            "(started again, it continues one that was interrupted)"
        ) from None
    except (ValueError, OSError) as error:
        raise ShardError(f"{path}: not readable ({error}); run `cmd-extract run` again to rebuild it") from None
    if index.get("format") != schema.FORMAT_NAME or index.get("version") not in schema.READABLE_VERSIONS:
        raise ShardError(f"{path}: format {index.get('format')!r} version {index.get('version')}, not readable here")
    return index
