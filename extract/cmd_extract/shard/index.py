"""The index of an output folder: ``index.json``, and its table, whose columns are mapped into memory.

The table is an HDF5 file of contiguous columns. Processes that map it share its pages, and only pages that are used are
read. ``extract/README.md`` documents it.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from cmd_extract import schema
from cmd_extract.errors import ShardError
from cmd_extract.schema import VideoEntry, VideoRecord
from cmd_extract.shard.index_format import (
    ATTR_DATA_HASH,
    CODEC,
    CODES,
    FIRST,
    GROUP,
    KEYFRAME_INDEX,
    LABEL,
    PLAIN_COLUMNS,
    RAGGED,
    SHARD_COUNTS,
    SHARD_FIRST_ROW,
    SHARD_FIRST_VIDEO,
    SHARD_ROWS_HASH,
    SHARD_SHA256,
    SPLIT,
    VALUES,
    VIDEO_COLUMNS,
    VIDEO_FINGERPRINT,
    VIDEO_FIRST_KEYFRAME,
    VIDEO_FPS,
    VIDEO_FRAME_COUNT,
    VIDEO_ID,
    VIDEO_ROW,
    VIDEO_SOURCE_SIZE,
    list_checksums,
    read_head,
    rebuild_hint,
)
from cmd_extract.shard.locations import find_column
from cmd_extract.shard.videos import Names, Videos
from cmd_extract.sources.access import fingerprint
from cmd_extract.system.mapping import map_file

_TYPES = {"code": np.uint32, "values": np.uint8, "values_first": np.int64}
_COUNTS = ("size_bytes", "frames", "failures", "damaged")
_BLOCK = 1 << 16  # texts or rows at a time, so that a column need not fit into memory


class ShardEntry(NamedTuple):
    """A shard in the index.

    Attributes:
        name: file name.
        sha256: checksum of the file.
        size_bytes: its size.
        videos, frames, failures, damaged: see ``cmd_extract.shard.writer.WrittenShard``.
        first_row, end_row: range of its manifest rows.
        rows_hash: hash of these rows, see ``schema.hash_records``.
    """

    name: str
    sha256: str
    size_bytes: int
    videos: int
    frames: int
    failures: int
    damaged: int
    first_row: int
    end_row: int
    rows_hash: str


class ShardIndex:
    """Index of an output folder; pickled as its path, so that processes share the columns.

    Args:
        folder: the output folder.
        name: file name of the index.

    Attributes:
        folder: the output folder.
        name: file name of the index.
        head: content of the JSON file.
        config_hash: hash of the extraction configuration.
        data_hash: hash of the shards' content and of the labels, groups and splits.
        split_columns: names of the split columns, sorted.
        row_count: number of manifest rows.
        table_path: path of its table.

    Raises:
        ShardError: the file is missing, invalid or of another version, or its table is.
    """

    def __init__(self, folder: Path, name: str = schema.INDEX_NAME) -> None:
        self.folder, self.name = folder, name
        self.head = read_head(folder, name)
        self.config_hash: str = self.head["config_hash"]
        self.data_hash: str = self.head["data_hash"]
        self.split_columns: tuple[str, ...] = tuple(self.head["split_columns"])
        self.row_count: int = self.head["rows"]
        self._shard_count: int = self.head["shards"]
        self.table_path = folder / self.head["table"]["name"]
        self._columns = self._map_table()

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_same, (self.folder, self.name, self.data_hash)

    def __len__(self) -> int:
        return self._shard_count

    @property
    def totals(self) -> dict[str, int]:
        """Totals over all shards: videos, frames, failures, damaged, size_bytes."""
        totals: dict[str, int] = self.head["totals"]
        return totals

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of the table, read-only."""
        return self._columns[name]

    def values(self, name: str) -> tuple[str, ...]:
        """Return the texts of a column by their codes."""
        return tuple(self.texts(VALUES.format(name)))

    def text(self, name: str, number: int) -> str:
        """Return one text of a column."""
        start, end = self._columns[FIRST.format(name)][number : number + 2].tolist()
        return self._columns[name][start:end].tobytes().decode("utf-8", "surrogateescape")

    def texts(self, name: str) -> Iterator[str]:
        """Yield the texts of a column."""
        first, data = self._columns[FIRST.format(name)], self._columns[name]
        for start in range(0, len(first) - 1, _BLOCK):
            ends = first[start : start + _BLOCK + 1].tolist()
            block = data[ends[0] : ends[-1]].tobytes()
            yield from (
                block[begin - ends[0] : end - ends[0]].decode("utf-8", "surrogateescape")
                for begin, end in itertools.pairwise(ends)
            )

    def row_column(self, name: str) -> str:
        """Return the name in the table of the column ``label``, ``group`` or a split column.

        Raises:
            KeyError: there is no such column.
        """
        if name in (LABEL, GROUP):
            return name
        if name not in self.split_columns:
            raise KeyError(name)
        return SPLIT.format(self.split_columns.index(name))

    def cells(self, name: str) -> Iterator[str]:
        """Yield the value of ``label``, ``group`` or a split column for each manifest row."""
        column = self.row_column(name)
        names, codes = self.values(column), self._columns[CODES.format(column)]
        for start in range(0, len(codes), _BLOCK):
            yield from map(names.__getitem__, codes[start : start + _BLOCK].tolist())

    def has_columns_of(self, records: Sequence[VideoRecord]) -> bool:
        """Return whether labels, groups and splits are those of manifest rows."""
        if len(records) != self.row_count or {*self.split_columns} != {name for r in records for name in r.splits}:
            return False
        return all(
            all(cell == cell_of(name, record) for cell, record in zip(self.cells(name), records, strict=True))
            for name in (LABEL, GROUP, *self.split_columns)
        )

    def shard(self, number: int) -> ShardEntry:
        """Return a shard."""
        counts = dict(zip(_COUNTS, self._columns[SHARD_COUNTS][number].tolist(), strict=True))
        first_video, end_video = self._columns[SHARD_FIRST_VIDEO][number : number + 2].tolist()
        first_row, end_row = self._columns[SHARD_FIRST_ROW][number : number + 2].tolist()
        return ShardEntry(
            name=schema.SHARD_PATTERN.format(number),
            sha256=self._columns[SHARD_SHA256][number].decode(),
            videos=end_video - first_video,
            first_row=first_row,
            end_row=end_row,
            rows_hash=self._columns[SHARD_ROWS_HASH][number].decode(),
            **counts,
        )

    def shards(self) -> Iterator[ShardEntry]:
        """Yield all shards."""
        return map(self.shard, range(len(self)))

    def is_intact(self) -> bool:
        """Return whether the table has its checksum; reads all of it."""
        sha256: str = self.head["table"]["sha256"]
        return fingerprint(self.table_path) == sha256

    def check_in_place(self) -> None:
        """Check that this still is the index of its folder.

        Raises:
            ShardError: another process has replaced or removed it.
        """
        if ShardIndex(self.folder, self.name).head != self.head:
            raise ShardError(f"{self.folder}: another process has just changed {self.name}; run the same command again")

    def checksums(self) -> dict[str, str]:
        """Return the SHA-256 of each file that the index describes, by file name."""
        return list_checksums(self.head, self._columns[SHARD_SHA256])

    def video_columns(self, shard: int) -> dict[str, NDArray[Any]]:
        """Return the columns of the videos of a shard, those of ``RAGGED`` starting at 0."""
        start, end = self._columns[SHARD_FIRST_VIDEO][shard : shard + 2].tolist()
        found = {name: self._columns[name][start:end] for name in VIDEO_COLUMNS}
        for name, data in RAGGED.items():
            first = self._columns[name][start : end + 1]
            found |= {name: first - first[0], data: self._columns[data][first[0] : first[-1]]}
        return found

    def _map_table(self) -> dict[str, NDArray[Any]]:
        path, problem = self.table_path, ""
        try:
            if path.stat().st_size != self.head["table"]["size_bytes"]:
                problem = f"has {path.stat().st_size} bytes, expected {self.head['table']['size_bytes']}"
            else:
                with h5py.File(path, "r", locking=False) as file:
                    found = {name: find_column(file, name) for name in self._column_names()}
                    if str(file.attrs[ATTR_DATA_HASH]) != self.data_hash:
                        problem = "of other data"
                data = map_file(path, np.uint8)
                columns = {
                    name: data[c.position :][: c.dtype.itemsize * int(np.prod(c.shape))].view(c.dtype).reshape(c.shape)
                    for name, c in found.items()
                }
                problem = problem or self._length_problem(columns)
        except FileNotFoundError:
            problem = "missing"
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            problem = f"cannot be read ({error})"
        if problem:
            raise ShardError(
                f"{path}: {problem}, although {self.folder / self.name} needs it; {rebuild_hint(self.folder)}"
            )
        return columns

    def _column_names(self) -> list[str]:
        splits = (SPLIT.format(number) for number in range(len(self.split_columns)))
        coded = (CODEC, LABEL, GROUP, *splits)
        values = [VALUES.format(name) for name in coded]
        codes = [CODES.format(name) for name in coded]
        return [*PLAIN_COLUMNS, *codes, *values, *map(FIRST.format, values)]

    def _length_problem(self, columns: Mapping[str, NDArray[Any]]) -> str:
        shards, rows, videos = len(self), self.row_count, self.head["videos"]
        lengths = {
            **dict.fromkeys((SHARD_SHA256, SHARD_ROWS_HASH, SHARD_COUNTS), shards),
            **dict.fromkeys((SHARD_FIRST_ROW, SHARD_FIRST_VIDEO), shards + 1),
            **dict.fromkeys(VIDEO_COLUMNS, videos),
            **dict.fromkeys(RAGGED, videos + 1),
            CODES.format(CODEC): videos,
            **{CODES.format(self.row_column(name)): rows for name in (LABEL, GROUP, *self.split_columns)},
        }
        for name, column in columns.items():
            dtype, *shape = PLAIN_COLUMNS.get(name) or (_TYPES[name.rpartition("/")[2]],)
            if column.dtype != np.dtype(dtype) or column.shape[1:] != tuple(shape):
                return f"{name} is {column.dtype} {column.shape}"
        wrong = [name for name, length in lengths.items() if len(columns[name]) != length]
        return f"{wrong[0]} has {len(columns[wrong[0]])} items, expected {lengths[wrong[0]]}" if wrong else ""


class IndexedVideos(Videos):
    """The videos of an output folder, in manifest order.

    Args:
        index: its index.
    """

    def __init__(self, index: ShardIndex) -> None:
        self._index, self.split_columns = index, index.split_columns

    def __len__(self) -> int:
        count: int = self._index.head["videos"]
        return count

    def entry(self, number: int) -> VideoEntry:
        """See ``Videos.entry``."""
        index = self._index
        row = int(index.column(VIDEO_ROW)[number])
        first_video = index.column(SHARD_FIRST_VIDEO)
        shard = bisect.bisect_right(first_video, number) - 1
        width, height = index.column(VIDEO_SOURCE_SIZE)[number].tolist()
        first_keyframe, end_keyframe = index.column(VIDEO_FIRST_KEYFRAME)[number : number + 2].tolist()

        def cell(column: str, item: int = row) -> str:
            return index.text(VALUES.format(column), int(index.column(CODES.format(column))[item]))

        return VideoEntry(
            row=row,
            video_id=index.text(VIDEO_ID, number),
            label=cell(LABEL),
            group=cell(GROUP),
            splits={name: cell(SPLIT.format(split)) for split, name in enumerate(index.split_columns)},
            frame_count=int(index.column(VIDEO_FRAME_COUNT)[number]),
            fps=float(index.column(VIDEO_FPS)[number]),
            source_width=width,
            source_height=height,
            codec=cell(CODEC, number),
            fingerprint=index.column(VIDEO_FINGERPRINT)[number].tobytes().hex(),
            keyframe_indices=tuple(index.column(KEYFRAME_INDEX)[first_keyframe:end_keyframe].tolist()),
            shard=shard,
            position=number - int(first_video[shard]),
        )

    def numbers(self, column: str) -> NDArray[Any]:
        """See ``Videos.numbers``."""
        if column in ("source_width", "source_height"):
            size: NDArray[np.int32] = self._index.column(VIDEO_SOURCE_SIZE)[:, int(column == "source_height")]
            return size
        if column == "keyframe_count":
            counts: NDArray[np.int64] = np.diff(self._index.column(VIDEO_FIRST_KEYFRAME))
            return counts
        if column == "shard":
            videos = np.diff(self._index.column(SHARD_FIRST_VIDEO))
            return np.repeat(np.arange(len(videos)), videos)
        return self._index.column(f"video/{column}")

    def texts(self, column: str) -> Iterator[str]:
        """See ``Videos.texts``."""
        if column == "video_id":
            return self._index.texts(VIDEO_ID)
        return (row.tobytes().hex() for row in self._index.column(VIDEO_FINGERPRINT))

    def names(self, column: str) -> Names:
        """See ``Videos.names``."""
        if column == CODEC:
            return Names(self._index.column(CODES.format(CODEC)).astype(np.int64), self._index.values(CODEC))
        return self._row_names(column)

    def split(self, column: str) -> Names:
        """See ``Videos.split``."""
        if column not in self.split_columns:
            raise KeyError(column)
        return self._row_names(column)

    def _row_names(self, name: str) -> Names:
        column = self._index.row_column(name)
        codes = self._index.column(CODES.format(column))[self._index.column(VIDEO_ROW)]
        return Names(codes.astype(np.int64), self._index.values(column))


def cell_of(column: str, record: VideoRecord) -> str:
    """Return the value of ``label``, ``group`` or a split column in a manifest row."""
    if column in (LABEL, GROUP):
        return record.label if column == LABEL else record.group
    return record.splits.get(column, "")


def find_indexes(folder: Path) -> list[ShardIndex]:
    """Return the valid indexes of a folder: the index, and the one that is being replaced."""
    found = []
    for name in (schema.INDEX_NAME, schema.PREVIOUS_INDEX_NAME):
        with contextlib.suppress(ShardError):
            found.append(ShardIndex(folder, name))
    return found


def _open_same(folder: Path, name: str, data_hash: str) -> ShardIndex:
    index = ShardIndex(folder, name)
    if index.data_hash != data_hash:
        raise ShardError(f"{folder / name}: replaced while it was in use; start again")
    return index
