"""Rows of a manifest, read and checked block by block, so that a manifest of any size takes little memory."""

from __future__ import annotations

import csv
import io
import itertools
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.table import CsvRow, check_width, columns_of_header, name_problem, read_rows
from cmd_extract.schema import VideoRecord

REQUIRED_COLUMNS = ("id", "path")
OPTIONAL_COLUMNS = ("label", "group")
PARTS = ("train", "val", "test")
"""Values of a split column; a cell may also be empty."""
SPLIT_COLUMN = re.compile(r"split[A-Za-z0-9_-]*")

_ALLOWED_COLUMNS = "id, path, label, group and split columns (split, split1, split2, ...)"
_BLOCK_ROWS = 8192


def is_split_column(name: str) -> bool:
    """Return whether a column name is ``split``, alone or followed by letters, digits, ``_`` or ``-``."""
    return SPLIT_COLUMN.fullmatch(name) is not None


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive rows of a manifest.

    Attributes:
        first: number of the first row.
        lines: line of each row in the file, 1-based.
        starts: position of each row in its source: in bytes for files.
        stop: position of the end of the last row.
        columns: maps column names to one cell per row.
    """

    first: int
    lines: Sequence[int]
    starts: Sequence[int]
    stop: int
    columns: Mapping[str, Sequence[str]]

    def __len__(self) -> int:
        return len(self.starts)

    def records(self) -> Iterator[VideoRecord]:
        """Yield the rows as records."""
        ids, paths, empty = self.columns["id"], self.columns["path"], ("",) * len(self)
        labels, groups = self.columns.get("label", empty), self.columns.get("group", empty)
        splits = {name: cells for name, cells in self.columns.items() if is_split_column(name)}
        rows = zip(ids, paths, labels, groups, strict=True)
        for number, (video_id, path, label, group) in enumerate(rows):
            yield VideoRecord(
                row=self.first + number,
                video_id=video_id,
                path=path,
                label=label,
                group=group,
                splits={name: cells[number] for name, cells in splits.items()},
            )


class Rows(Protocol):
    """The rows of a manifest."""

    def blocks(self, update: Callable[[bytes], object] | None = None) -> Iterator[Block]:
        """Yield all rows in blocks, checked.

        Args:
            update: called with all bytes of a manifest file, in order, as they are read.

        Raises:
            ManifestError: the manifest is invalid; names the file, line, column and value.
        """

    def read(self, rows: range, start: int, stop: int) -> tuple[VideoRecord, ...]:
        """Return some of the rows.

        Args:
            rows: their numbers.
            start, stop: positions of the start of the first row and of the end of the last one, see ``Block``.

        Raises:
            ManifestError: the manifest cannot be read, or there are no such rows at that position any more.
        """


@dataclass(frozen=True)
class ListedRows:
    """Rows that are held in memory, already checked; positions are row numbers.

    Attributes:
        records: the rows.
    """

    records: Sequence[VideoRecord]

    def blocks(self, update: Callable[[bytes], object] | None = None) -> Iterator[Block]:
        """See ``Rows``; only the columns ``id`` and ``path``."""
        rows = range(len(self.records))
        columns = {"id": [r.video_id for r in self.records], "path": [r.path for r in self.records]}
        yield Block(first=0, lines=rows, starts=rows, stop=len(rows), columns=columns)

    def read(self, rows: range, start: int, stop: int) -> tuple[VideoRecord, ...]:
        """See ``Rows``."""
        return tuple(self.records[start:stop])


@dataclass(frozen=True)
class ManifestFile:
    """The rows of a manifest file.

    Attributes:
        path: the CSV file.
    """

    path: Path

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, checked."""
        columns = columns_of_header(self.path, next(read_rows(self.path), None))
        _check_columns(self.path, columns)
        return columns

    def blocks(self, update: Callable[[bytes], object] | None = None) -> Iterator[Block]:
        """See ``Rows``. Whether ids are unique is checked at the end."""
        rows, unique, first = read_rows(self.path, update=update), _UniqueIds(self.path), 0
        columns = columns_of_header(self.path, next(rows, None))
        _check_columns(self.path, columns)
        while batch := list(itertools.islice(rows, _BLOCK_ROWS)):
            block = _block(self.path, first, columns, batch)
            _check_cells(self.path, block)
            unique.add(block.columns["id"])
            yield block
            first += len(batch)
        if not first:
            raise ManifestError(f"{self.path}: no rows below the header; add one row per video")
        unique.check(columns.index("id"))

    def read(self, rows: range, start: int, stop: int) -> tuple[VideoRecord, ...]:
        """See ``Rows``."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(start)
                text = stream.read(stop - start).decode("utf-8", errors="surrogateescape")
            batch = [
                CsvRow(0, 0, 0, cells) for cells in csv.reader(io.StringIO(text, newline=""), strict=True) if cells
            ]
            if len(batch) == len(rows):
                return tuple(_block(self.path, rows.start, self.columns, batch).records())
        except OSError as error:
            raise ManifestError(f"{self.path}: cannot be read ({error.strerror}); check the path") from error
        except (csv.Error, ValueError):  # other bytes than before
            pass
        raise ManifestError(f"{self.path}: has changed since it was read; run the same command again")


def _block(path: Path, first: int, columns: Sequence[str], batch: Sequence[CsvRow]) -> Block:
    lines, starts, stops, cells = zip(*batch, strict=True)
    if set(map(len, cells)) != {len(columns)}:
        for row in batch:
            check_width(path, row.line, row.cells, columns)
    by_name = dict(zip(columns, zip(*cells, strict=True), strict=True))
    return Block(first=first, lines=lines, starts=starts, stop=stops[-1], columns=by_name)


@dataclass
class _UniqueIds:
    """Checks that ids are unique, by their hashes: 8 bytes per row. Only rows with equal hashes are compared.

    Attributes:
        path: the manifest.
        hashes: hash of each id.
    """

    path: Path
    hashes: array[int] = field(default_factory=lambda: array("q"))

    def add(self, ids: Sequence[str]) -> None:
        self.hashes.extend(map(hash, ids))

    def check(self, column: int) -> None:
        """Read the manifest again if hashes are equal; ``column`` is that of the ids."""
        ordered = np.sort(np.frombuffer(self.hashes, np.int64))
        repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        line_of_id: dict[str, int] = {}
        for row in itertools.islice(read_rows(self.path), 1, None) if repeated else ():
            video_id = row.cells[column]
            earlier = line_of_id.setdefault(video_id, row.line) if hash(video_id) in repeated else row.line
            if earlier != row.line:
                raise ManifestError(
                    f"{self.path}, line {row.line}, column 'id': {video_id!r} is also the id of line {earlier}; give "
                    "every row a unique id"
                )


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    for name in columns:
        if not _is_column(name) and _is_column(name.strip()):
            raise ManifestError(
                f"{path}, line 1: column {name!r} starts or ends with white space; remove it there and around the "
                "other cells, or let 'cmd-extract manifest' do so"
            )
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        remedy = "rename the column with the paths" if "path" in missing else "'cmd-extract manifest' adds ids"
        raise ManifestError(
            f"{path}, line 1: no column {' and no column '.join(map(repr, missing))} in the header "
            f"({', '.join(columns)}); {remedy}"
        )
    unknown = [name for name in columns if not _is_column(name)]
    if unknown:
        raise ManifestError(
            f"{path}, line 1: unknown column {unknown[0]!r}; allowed: {_ALLOWED_COLUMNS}. Rename it, or let "
            "'cmd-extract manifest' leave it out"
        )


def _is_column(name: str) -> bool:
    return name in REQUIRED_COLUMNS + OPTIONAL_COLUMNS or is_split_column(name)


def _check_cells(path: Path, block: Block) -> None:
    if all(_is_plain(name, cells) for name, cells in block.columns.items()):
        return  # checked at once, which takes a fraction of the time
    for line, record in zip(block.lines, _cells_of_rows(block), strict=True):
        problem = cell_problem(record)
        if problem is not None:
            column, reason = problem
            raise ManifestError(f"{path}, line {line}, column {column!r}: {record[column]!r} {reason}")


def _is_plain(name: str, cells: Sequence[str]) -> bool:
    """Return whether a column has no invalid cell; False if that must be found out cell by cell."""
    if is_split_column(name):
        return set(cells) <= {"", *PARTS}
    if name in REQUIRED_COLUMNS and not all(cells):
        return False
    if name == "path":
        return True  # files of tables have no NUL characters
    joined = "\n".join(cells)
    # The space is the only printable white space.
    edges = joined.startswith(" ") or joined.endswith(" ") or " \n" in joined or "\n " in joined
    return not edges and joined.count("\n") == len(cells) - 1 and joined.replace("\n", "").isprintable()


def _cells_of_rows(block: Block) -> Iterator[dict[str, str]]:
    for cells in zip(*block.columns.values(), strict=True):
        yield dict(zip(block.columns, cells, strict=True))


def cell_problem(cells: Mapping[str, str]) -> tuple[str, str] | None:
    """Return column and problem of the first invalid cell of a row; None if there is none."""
    if not cells["id"]:
        return "id", "is empty; give the row a unique id"
    if not cells["path"]:
        return "path", "is empty; enter the path of the video"
    for column in ("id", *OPTIONAL_COLUMNS):
        reason = name_problem(cells.get(column, ""))
        if reason is not None:
            return column, reason
    if "\0" in cells["path"]:
        return "path", "contains a NUL character, which is not allowed in file names"
    for column, part in cells.items():
        if is_split_column(column) and part and part not in PARTS:
            return column, f"is not a split part; allowed: {', '.join(PARTS)}, or empty for a video in none of them"
    return None
