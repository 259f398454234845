"""Writing of an index and its table: columns are collected in files, shard by shard, then copied into one HDF5 file."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cmd_extract import schema
from cmd_extract.errors import ShardError
from cmd_extract.schema import VideoRecord
from cmd_extract.shard import index_format as names
from cmd_extract.shard.hdf5_file import new_hdf5
from cmd_extract.shard.index import ShardEntry, ShardIndex, cell_of
from cmd_extract.shard.index_format import CODES, FIRST, VALUES, read_head
from cmd_extract.shard.reader import ShardReader
from cmd_extract.sources.access import fingerprint
from cmd_extract.system.files import sync, write_atomically
from cmd_extract.system.mapping import map_file

_BLOCK = 1 << 16
_ROWS_AT_ONCE = 4096


class _Column:
    """A growing column in a file."""

    def __init__(self, path: Path, dtype: Any, shape: tuple[int, ...] = ()) -> None:
        self._path, self._dtype, self._shape = path, np.dtype(dtype), shape
        self._stream: IO[bytes] = path.open("wb")
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, values: Any) -> None:
        array = np.asarray(values, self._dtype)
        self._stream.write(array.tobytes())
        self._length += len(array)

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield the content in blocks."""
        self._stream.flush()
        values = map_file(self._path, self._dtype, shape=(self._length, *self._shape))
        yield from (values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK))

    def write(self, file: h5py.File, name: str) -> None:
        """Copy the column to a dataset."""
        shape = (self._length, *self._shape)
        dataset = file.create_dataset(name, shape=shape, dtype=self._dtype, track_times=False)
        start = 0
        for block in self.blocks():
            dataset[start : start + len(block)] = block
            start += len(block)

    def close(self) -> None:
        self._stream.close()


class _Codes:
    """A growing text column with few values, by code. The empty text has the code 0."""

    def __init__(self, column: _Column) -> None:
        self.column = column
        self._code_of = {"": 0}

    @property
    def values(self) -> tuple[str, ...]:
        return tuple(self._code_of)

    def append(self, values: Iterable[str]) -> None:
        code_of = self._code_of
        self.column.append([code_of.setdefault(value, len(code_of)) for value in values])

    def append_codes(self, codes: NDArray[np.uint32], values: Sequence[str]) -> None:
        """Append values given by the codes of another table, in the order in which ``append`` would number them."""
        used, first = np.unique(codes, return_index=True)
        code = np.zeros(len(values), np.uint32)
        for other in used[np.argsort(first)].tolist():
            code[other] = self._code_of.setdefault(values[other], len(self._code_of))
        self.column.append(code[codes])


class IndexWriter:
    """Collects the content of an index in files; holds no object per video.

    Args:
        out: output folder.
        scratch: existing folder for temporary files, on the same file system as ``out``.
        previous: an index of the folder from which the columns of unchanged shards are copied.
    """

    def __init__(self, out: Path, scratch: Path, previous: ShardIndex | None = None) -> None:
        self._out, self._scratch, self._previous = out, scratch, previous
        self._columns: dict[str, _Column] = {}
        for name, (dtype, *shape) in names.PLAIN_COLUMNS.items():
            self._column(name, dtype, tuple(shape))
        for name in (names.SHARD_FIRST_ROW, names.SHARD_FIRST_VIDEO, *names.RAGGED):
            self._columns[name].append([0])
        self._codec = _Codes(self._column(CODES.format(names.CODEC), np.uint32))
        self._cells = {name: _Codes(self._column(CODES.format(name), np.uint32)) for name in (names.LABEL, names.GROUP)}
        self._totals = dict.fromkeys(names.TOTALS, 0)
        self._rows = self._shards = 0
        # Not in the columns yet: rows, and shards, each with the number of videos up to its end.
        self._records: list[VideoRecord] = []
        self._entries: list[tuple[ShardEntry, int]] = []
        self._reused = range(0)  # shards to copy from the previous index

    def _column(self, name: str, dtype: Any, shape: tuple[int, ...] = ()) -> _Column:
        path = self._scratch / f"column-{len(self._columns)}"
        self._columns[name] = _Column(path, dtype, shape)
        return self._columns[name]

    def add_rows(self, records: Sequence[VideoRecord]) -> None:
        """Add the labels, groups and splits of manifest rows, which follow those added before."""
        self._records += records
        if len(self._records) >= _ROWS_AT_ONCE:
            self._write_rows()

    def _write_rows(self) -> None:
        records, self._records = self._records, []
        for name in {name for record in records for name in record.splits} - set(self._cells):
            self._cells[name] = _Codes(self._column(f"split {name}", np.uint32))
            self._cells[name].column.append(np.zeros(self._rows))
        for name, codes in self._cells.items():
            codes.append([cell_of(name, record) for record in records])
        self._rows += len(records)

    def _write_entries(self) -> None:
        if not self._entries:
            return
        entries, videos = zip(*self._entries, strict=True)
        self._entries, columns = [], self._columns
        columns[names.SHARD_SHA256].append([shard.sha256.encode() for shard in entries])
        columns[names.SHARD_ROWS_HASH].append([shard.rows_hash.encode() for shard in entries])
        counts = [(shard.size_bytes, shard.frames, shard.failures, shard.damaged) for shard in entries]
        columns[names.SHARD_COUNTS].append(counts)
        columns[names.SHARD_FIRST_ROW].append([shard.end_row for shard in entries])
        columns[names.SHARD_FIRST_VIDEO].append(videos)

    def add_shard(self, shard: ShardEntry) -> None:
        """Add a shard. Its videos are copied from the previous index if that has the same shard, otherwise read."""
        number, self._shards = self._shards, self._shards + 1
        self._totals = {key: self._totals[key] + getattr(shard, key) for key in names.TOTALS}
        self._entries.append((shard, self._totals["videos"]))
        if len(self._entries) >= _ROWS_AT_ONCE:
            self._write_entries()
        if self._previous is not None and number < len(self._previous) and self._previous.shard(number) == shard:
            self._reused = range(self._reused.start if self._reused else number, number + 1)
        else:
            self._copy_reused()
            with contextlib.closing(ShardReader(self._out / shard.name)) as reader:
                self._add_videos(reader.video_columns())
                self._codec.append(reader.codecs())

    def _add_videos(self, found: Mapping[str, NDArray[Any]]) -> None:
        for name in names.VIDEO_COLUMNS:
            self._columns[name].append(found[name])
        for first, data in names.RAGGED.items():
            self._columns[first].append(found[first][1:] - found[first][0] + len(self._columns[data]))
            self._columns[data].append(found[data])

    def _copy_reused(self) -> None:
        """Copy the videos of consecutive shards from the previous index."""
        index, shards, self._reused = self._previous, self._reused, range(0)
        if index is None or not shards:
            return
        start, end = (int(index.column(names.SHARD_FIRST_VIDEO)[number]) for number in (shards.start, shards.stop))
        codecs = index.values(names.CODEC)
        for first in range(start, end, _BLOCK):
            part = slice(first, min(first + _BLOCK, end))
            found = {name: index.column(name)[part] for name in names.VIDEO_COLUMNS}
            for name, data in names.RAGGED.items():
                found[name] = index.column(name)[part.start : part.stop + 1]
                found[data] = index.column(data)[found[name][0] : found[name][-1]]
            self._add_videos(found)
            self._codec.append_codes(index.column(CODES.format(names.CODEC))[part], codecs)

    def save(
        self,
        config: Mapping[str, Any],
        config_hash: str,
        manifest_sha256: str,
        check: Callable[[], None] = lambda: None,
    ) -> dict[str, int]:
        """Write the table, then ``index.json``, which names it; remove the table of the index that is replaced.

        Args:
            config: resolved extraction configuration.
            config_hash: its hash.
            manifest_sha256: hash of the bytes of the manifest that labels, groups and splits come from.
            check: called at the last moment; raises an error if the index must not be replaced.

        Returns:
            Totals: videos, frames, failures, damaged, size_bytes.
        """
        self._copy_reused()
        self._write_rows()
        self._write_entries()
        splits = sorted(set(self._cells) - {names.LABEL, names.GROUP})
        data_hash = self._data_hash()
        temporary = self._scratch / "table.h5"
        with new_hdf5(temporary) as file:
            file.attrs[names.ATTR_DATA_HASH] = data_hash
            self._write_columns(file, splits)
        sha256 = fingerprint(temporary)
        table = {"name": schema.INDEX_TABLE_PATTERN.format(sha256[:16]), "sha256": sha256}
        head = {
            "format": schema.FORMAT_NAME,
            "version": schema.INDEX_VERSION,
            "config": config,
            "config_hash": config_hash,
            "data_hash": data_hash,
            "manifest_sha256": manifest_sha256,
            "totals": self._totals,
            "shards": self._shards,
            "rows": self._rows,
            "videos": self._totals["videos"],
            "split_columns": splits,
            "table": table | {"size_bytes": temporary.stat().st_size},
        }
        path = self._out / table["name"]
        sync(temporary)
        check()
        temporary.replace(path)
        write_atomically(self._out / schema.INDEX_NAME, json.dumps(head, indent=1) + "\n")  # syncs the folder, too
        (self._out / schema.PREVIOUS_INDEX_NAME).unlink(missing_ok=True)
        self._remove_other_tables(path)
        return self._totals

    def _remove_other_tables(self, written: Path) -> None:
        """Remove the tables that the index does not name, also those of killed processes.

        Raises:
            ShardError: another process has written an index at the same time.
        """
        named = read_head(self._out, schema.INDEX_NAME)["table"]["name"]
        for path in self._out.glob(schema.INDEX_TABLE_PATTERN.format("*")):
            if path.name != named:
                path.unlink(missing_ok=True)
        if named != written.name or not written.exists():
            raise ShardError(
                f"{self._out}: another process has written {schema.INDEX_NAME} at the same time; run the same command "
                "again"
            )

    def _write_columns(self, file: h5py.File, splits: Sequence[str]) -> None:
        cells = {name: self._cells[name] for name in (names.LABEL, names.GROUP)}
        cells |= {names.SPLIT.format(number): self._cells[name] for number, name in enumerate(splits)}
        for name in names.PLAIN_COLUMNS:
            self._columns[name].write(file, name)
        for name, codes in {names.CODEC: self._codec, **cells}.items():
            codes.column.write(file, CODES.format(name))
            texts = [text.encode("utf-8", "surrogateescape") for text in codes.values]
            first = np.cumsum([0, *map(len, texts)], dtype=np.int64)
            file.create_dataset(FIRST.format(VALUES.format(name)), data=first, track_times=False)
            values = np.frombuffer(b"".join(texts), np.uint8)
            file.create_dataset(VALUES.format(name), data=values, track_times=False)

    def _data_hash(self) -> str:
        """Return the data hash, see ``schema.join_hashes``, without holding the cells.

        The hashes are those of the JSON values ``[checksums of the shards, {column: cells}]`` and of the checksums.
        """
        checksums = [f'"{sha256.decode()}"' for b in self._columns[names.SHARD_SHA256].blocks() for sha256 in b]
        shards = f"[{','.join(checksums)}]".encode()
        digest = hashlib.sha256(b"[" + shards + b",{")
        for number, name in enumerate(sorted(self._cells)):
            digest.update(f"{',' * bool(number)}{json.dumps(name)}:[".encode())
            texts, separator = [json.dumps(value) for value in self._cells[name].values], ""
            for block in self._cells[name].column.blocks():
                digest.update((separator + ",".join(map(texts.__getitem__, block.tolist()))).encode())
                separator = ","
            digest.update(b"]")
        digest.update(b"}]")
        return schema.join_hashes(digest.hexdigest(), hashlib.sha256(shards).hexdigest())

    def close(self) -> None:
        """Close the temporary files."""
        for column in self._columns.values():
            column.close()
