"""Verification of an output folder: checksums, counts, offsets, JPEGs, motion grids, source files."""

from __future__ import annotations

import contextlib
import csv
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import hdf5plugin  # noqa: F401 -- registers the filter with which motion is compressed
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from cmd_extract import schema
from cmd_extract.errors import ShardError, VideoError
from cmd_extract.schema import DamagedRow, FailedRow, NoteRow, VideoRecord
from cmd_extract.shard.index import ShardEntry, ShardIndex
from cmd_extract.shard.locations import chunk_table
from cmd_extract.shard.reader import ShardReader
from cmd_extract.sources.access import fingerprint, means_deleted
from cmd_extract.sources.location import Source

_BLOCK_FRAMES = 256
_MAX_PROBLEMS = 20  # per shard


@dataclass(frozen=True, kw_only=True)
class Problem:
    """An error found in an output folder.

    Attributes:
        shard: number of the shard that must be extracted again; None for problems of other files.
        text: one line for the user.
    """

    shard: int | None
    text: str


class ShardTables(NamedTuple):
    """Rows of a shard in the tables of its folder."""

    failures: list[FailedRow]
    damaged: list[DamagedRow]
    notes: list[NoteRow]


class CheckedShard(NamedTuple):
    """Result of checking one shard.

    Attributes:
        number: number of the shard.
        problems: problems found; extracting the shard again may solve them.
        unread: problems of sources that could not be read, which nothing but the sources can solve.
        tables: its rows of the tables; None if they cannot be read.
    """

    number: int
    problems: list[str]
    unread: list[str]
    tables: ShardTables | None


class ShardToCheck(NamedTuple):
    """One shard to check.

    Attributes:
        number: its number.
        entry: its entry in the index.
        sources: path of the source of each of its manifest rows that is to be compared.
        tables_only: only read its tables.
    """

    number: int
    entry: ShardEntry
    sources: Mapping[int, Source]
    tables_only: bool


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """Checks shards of a folder; can be pickled.

    Attributes:
        index: index of the output folder.
        decode: whether to decode every JPEG.
    """

    index: ShardIndex
    decode: bool

    def __call__(self, shard: ShardToCheck) -> CheckedShard:
        """Check one shard."""
        path = self.index.folder / shard.entry.name
        problems: list[str] = []
        unread: list[str] = []
        tables = None
        try:
            if not shard.tables_only:
                found = _check_shard(path, shard, self.index.config_hash, self.decode, unread)
                problems += itertools.islice(found, _MAX_PROBLEMS)
            with contextlib.closing(ShardReader(path)) as reader:
                if not (problems or shard.tables_only or _is_indexed(reader, self.index, shard.number)):
                    problems.append("videos do not match the index")
                tables = ShardTables(reader.failures(), reader.damaged(), reader.notes())
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            problems.append(f"cannot be read: {error}" if path.exists() else "missing")
        return CheckedShard(shard.number, [] if shard.tables_only else problems, unread[:_MAX_PROBLEMS], tables)


Spread = Callable[[ShardCheck, Sequence[ShardToCheck]], Iterable[CheckedShard]]
"""Applies a check to shards, perhaps in several processes, and yields the results in any order."""


def verify_folder(
    folder: Path,
    *,
    index_name: str = schema.INDEX_NAME,
    decode: bool = True,
    sources: Sequence[VideoRecord] | None = None,
    resolve: Callable[[VideoRecord], Source] | None = None,
    part: tuple[int, int] = (0, 1),
    spread: Spread = map,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Problem]:
    """Check everything that ``cmd-extract run`` has written to a folder.

    Args:
        folder: the output folder.
        index_name: the index to compare with.
        decode: whether to decode every JPEG, which takes most of the time.
        sources: manifest rows whose labels, groups and splits are compared with the index, and whose files are compared
            with the stored fingerprints; missing files are skipped, also remote ones and missing members of
            complete tar files.
        resolve: returns the location of a row's video.
        part: task and number of tasks. Each task checks its part of the shards, task 0 also the index and the tables.
        spread: applies the check to the shards.
        progress: called with the number of checked shards and their total.

    Returns:
        All problems; the index and the tables are checked only if the shards have none.

    Raises:
        ShardError: there is no valid index.
    """
    index, (task, num_tasks) = ShardIndex(folder, index_name), part
    if not index.is_intact():
        raise ShardError(f"{index.table_path}: damaged; run `cmd-extract merge {folder}` to rebuild it")
    chosen = []
    for number, entry in enumerate(index.shards()):
        mine = number % num_tasks == task
        if mine or task == 0:
            rows = slice(entry.first_row, entry.end_row)
            paths = {r.row: resolve(r) for r in (sources or ())[rows]} if mine and resolve else {}
            chosen.append(ShardToCheck(number, entry, paths, tables_only=not mine))
    check = ShardCheck(index=index, decode=decode)
    checked = []
    for result in spread(check, chosen):
        checked.append(result)
        progress(len(checked), len(chosen))
    checked.sort()
    names = [entry.name for entry in index.shards()]
    found = [Problem(shard=c.number, text=f"{names[c.number]}: {text}") for c in checked for text in c.problems]
    unread = [Problem(shard=None, text=f"{names[c.number]}: {text}") for c in checked for text in c.unread]
    # A shard of another task that cannot be read is reported there.
    if not found and task == 0:
        tables = [c.tables for c in checked if c.tables is not None]
        texts = [*_check_labels(index, sources), *_check_folder(index)]
        if len(tables) == len(names):
            texts += _check_tables(folder, tables)
        found += [Problem(shard=None, text=text) for text in texts]
    return found + unread


def _check_shard(path: Path, shard: ShardToCheck, config_hash: str, decode: bool, unread: list[str]) -> Iterator[str]:
    entry = shard.entry
    if path.stat().st_size != entry.size_bytes:
        yield f"has {path.stat().st_size} bytes, expected {entry.size_bytes}"
    elif fingerprint(path) != entry.sha256:
        yield "checksum does not match the index"
    with h5py.File(path, "r", locking=False) as file:
        if file.attrs[schema.ATTR_CONFIG_HASH] != config_hash:
            yield "configuration does not match the index"
        if file.attrs[schema.ATTR_ROWS_HASH] != entry.rows_hash:
            yield "manifest rows do not match the index"
        counts = {
            "videos": len(file[schema.VIDEO_ROW]),
            "frames": len(file[schema.FRAME_TYPE]),
            "failures": len(file[schema.FAILURE_ROW]),
            "damaged": int((file[schema.VIDEO_DAMAGE][:] > 0).sum()),
        }
        expected = {key: getattr(entry, key) for key in counts}
        yield from (f"has {n} {key}, expected {expected[key]}" for key, n in counts.items() if n != expected[key])
        yield from _check_rows(file, entry)
        yield from _check_columns(file)
        yield from _check_jpegs(file, "frame", schema.FRAME_JPEG, schema.FRAME_OFFSET, decode, schema.ATTR_FRAME_SIZE)
        keyframes = (schema.KEYFRAME_JPEG, schema.KEYFRAME_OFFSET, decode, schema.ATTR_CANONICAL_SIZE)
        yield from _check_jpegs(file, "keyframe", *keyframes)
        yield from _check_motion(file)
        yield from _check_chunks(file)
        yield from _check_sources(file, shard.sources, unread)


def _is_indexed(reader: ShardReader, index: ShardIndex, number: int) -> bool:
    """Return whether the index has the videos of a shard."""
    listed = index.video_columns(number)
    return all(np.array_equal(values, listed[name]) for name, values in reader.video_columns().items())


def _check_rows(file: h5py.File, entry: ShardEntry) -> Iterator[str]:
    rows = {*file[schema.VIDEO_ROW][:].tolist(), *file[schema.FAILURE_ROW][:].tolist()}
    if rows != set(range(entry.first_row, entry.end_row)):
        yield f"videos and failures do not cover exactly the manifest rows {entry.first_row} to {entry.end_row - 1}"


def _check_columns(file: h5py.File) -> Iterator[str]:
    counts = file[schema.VIDEO_FRAME_COUNT][:]
    frames = int(counts.sum())
    if not np.array_equal(file[schema.VIDEO_FIRST_FRAME][:], np.cumsum(counts) - counts):
        yield f"{schema.VIDEO_FIRST_FRAME} does not match {schema.VIDEO_FRAME_COUNT}"
    for name in (schema.FRAME_TYPE, schema.FRAME_PTS, schema.MOTION_GRID, schema.MOTION_VALID):
        if len(file[name]) != frames:
            yield f"{name} has {len(file[name])} rows, expected {frames}"
    indices, firsts = file[schema.KEYFRAME_INDEX][:], file[schema.VIDEO_FIRST_KEYFRAME][:]
    owner = np.searchsorted(firsts, np.arange(len(indices)), side="right") - 1
    absolute = file[schema.VIDEO_FIRST_FRAME][:][owner].astype(np.int64) + indices
    if not np.array_equal(absolute, np.flatnonzero(file[schema.FRAME_TYPE][:] == b"I")):
        yield "the keyframes are not the I-frames"


def _check_jpegs(
    file: h5py.File, kind: str, data_name: str, offset_name: str, decode: bool, size_name: str
) -> Iterator[str]:
    data, offsets = file[data_name], file[offset_name][:].astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
        yield f"{offset_name} does not match {data_name}"
        return
    if not len(data):
        return  # --no-frames
    width, height = file.attrs[size_name]
    for start in range(0, len(offsets) - 1, _BLOCK_FRAMES):
        part = offsets[start : start + _BLOCK_FRAMES + 1]
        block: NDArray[np.uint8] = data[part[0] : part[-1]]
        for i, (begin, end) in enumerate(itertools.pairwise(part - part[0])):
            problem = _jpeg_problem(block[begin:end].tobytes(), int(width), int(height), decode)
            if problem:
                yield f"{kind} {start + i}: {problem}"


def _jpeg_problem(jpeg: bytes, width: int, height: int, decode: bool) -> str | None:
    if not (jpeg.startswith(b"\xff\xd8") and jpeg.endswith(b"\xff\xd9")):
        return "not a complete JPEG"
    try:
        found = simplejpeg.decode_jpeg_header(jpeg)[:2]
        if decode:
            simplejpeg.decode_jpeg(jpeg)
    except ValueError as error:
        return f"damaged JPEG ({error})"
    return None if found == (height, width) else f"{found[1]}x{found[0]} pixels, expected {width}x{height}"


def _check_motion(file: h5py.File) -> Iterator[str]:
    grid, valid, types = file[schema.MOTION_GRID], file[schema.MOTION_VALID], file[schema.FRAME_TYPE][:]
    width, height = (int(n) for n in file.attrs[schema.ATTR_CANONICAL_SIZE])
    cells = schema.grid_shape(width, height, int(file.attrs[schema.ATTR_CELL]))
    if grid.shape[1:] != (2, *cells) or valid.shape[1:] != cells:
        yield f"motion grids of shape {grid.shape[1:]} and {valid.shape[1:]}, expected {(2, *cells)} and {cells}"
        return
    for start in range(0, len(types), _BLOCK_FRAMES):
        values, mask = grid[start : start + _BLOCK_FRAMES], valid[start : start + _BLOCK_FRAMES]
        frames = f"{start} to {start + len(mask) - 1}"
        if mask.max(initial=0) > 1:
            yield f"{schema.MOTION_VALID}: values other than 0 and 1 in frames {frames}"
        if (values * (mask[:, None] == 0)).any():
            yield f"{schema.MOTION_GRID}: motion in invalid cells in frames {frames}"
        if mask[types[start : start + _BLOCK_FRAMES] == b"I"].any():
            yield f"{schema.MOTION_VALID}: I-frames with vectors in frames {frames}"


def _check_chunks(file: h5py.File) -> Iterator[str]:
    tables = {schema.MOTION_GRID: schema.MOTION_GRID_CHUNK, schema.MOTION_VALID: schema.MOTION_VALID_CHUNK}
    for name, table in tables.items():
        if not np.array_equal(file[table][:], chunk_table(file[name])):
            yield f"{table} does not match {name}"


def _check_sources(file: h5py.File, sources: Mapping[int, Source], unread: list[str]) -> Iterator[str]:
    """Yield the sources that have changed; add those to ``unread`` that exist, but cannot be read."""
    rows, fingerprints = file[schema.VIDEO_ROW][:].tolist(), file[schema.VIDEO_FINGERPRINT][:]
    for row, expected in dict(zip(rows, fingerprints, strict=True)).items():
        source = sources.get(row)
        if source is None:
            continue
        try:
            if fingerprint(source) != bytes(expected).decode():
                yield f"source {source} has changed since it was extracted"
        except (VideoError, OSError) as error:
            if not means_deleted(error):
                unread.append(f"source {source} cannot be read ({error}); the shard is not affected")


def _check_labels(index: ShardIndex, records: Sequence[VideoRecord] | None) -> Iterator[str]:
    if records is not None and not index.has_columns_of(records):
        yield (
            f"{schema.INDEX_NAME}: labels, groups or splits are not those of the manifest; `cmd-extract relabel "
            f"{index.folder} MANIFEST` replaces them"
        )


def _check_folder(index: ShardIndex) -> Iterator[str]:
    for key, value in index.totals.items():
        if sum(getattr(shard, key) for shard in index.shards()) != value:
            yield f"{schema.INDEX_NAME}: the total of {key} is not the sum over the shards"
    known = {shard.name for shard in index.shards()}
    foreign = sorted(p.name for p in index.folder.glob(schema.SHARD_GLOB) if p.name not in known)
    if foreign:
        yield f"shards that are not in the index: {', '.join(foreign[:5])}"


def _check_tables(folder: Path, tables: Sequence[ShardTables]) -> Iterator[str]:
    yield from _check_table(folder / schema.FAILURES_NAME, [row for table in tables for row in table.failures])
    yield from _check_table(folder / schema.DAMAGED_NAME, [row for table in tables for row in table.damaged])
    yield from _check_table(folder / schema.NOTES_NAME, [row for table in tables for row in table.notes])


def _check_table(path: Path, expected: Sequence[tuple[object, ...]]) -> Iterator[str]:
    if not path.exists():
        if expected or path.name != schema.NOTES_NAME:  # written only if there are notes
            yield f"{path.name}: missing"
        return
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        listed = list(csv.reader(stream))[1:]
    if listed != [list(map(str, row)) for row in expected]:
        yield f"{path.name}: does not match the shards"
