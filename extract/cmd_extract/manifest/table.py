"""Strict reading of CSV files with a header, and checks and messages shared by the manifest modules."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmd_extract.errors import ManifestError

SHOWN_PROBLEMS = 5
"""Maximum number of rows that an error message names; it only counts the others."""

_UNUSABLE_CATEGORIES = {
    "Cc": "a control character",
    "Cs": "bytes that are not UTF-8",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row of a CSV file.

    Attributes:
        line: 1-based line number in the file where the row starts.
        cells: maps column names to the cells' text, exactly as written.
    """

    line: int
    cells: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A CSV file with a header.

    Attributes:
        path: the file.
        columns: unique column names, in the file's order.
        rows: rows in the file's order, without blank lines.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


def name_problem(text: str) -> str | None:
    """Return why a text cannot be used as an id, label or group; None if it can (an empty text can).

    Names end up in HDF5 strings, JSON, file names, terminals and web pages. They are never repaired: stripping a space
    could merge two ids or change a class.
    """
    if text != text.strip():
        return "starts or ends with white space; remove it"
    if text.isprintable():
        return None
    for position, character in enumerate(text):
        kind = _UNUSABLE_CATEGORIES.get(unicodedata.category(character))
        if kind is not None:
            return f"contains {kind} at position {position}; rename it"
    return None


def read_table(path: Path) -> Table:
    """Read a UTF-8 CSV file with a header.

    A byte order mark is accepted. Bytes that are not UTF-8 become surrogates, as in Python's file names.

    Raises:
        ManifestError: the file cannot be read, is not CSV, has no header, no rows or duplicate columns, or a row has
            more or fewer cells than the header.
    """
    lines = _numbered_rows(path)
    header = next(lines, None)
    if header is None:
        raise ManifestError(f"{path}: the file is empty; add a header line with the column names")
    columns = header[1]
    for name in columns:
        if columns.count(name) > 1:
            raise ManifestError(f"{path}, line {header[0]}: duplicate column {name!r}; remove one")
    rows: list[TableRow] = []
    for line, cells in lines:
        if len(cells) != len(columns):
            raise ManifestError(
                f"{path}, line {line}: {len(cells)} cells for {len(columns)} columns ({', '.join(columns)}); put cells "
                "that contain a comma, a quote or a line break in double quotes"
            )
        rows.append(TableRow(line=line, cells=dict(zip(columns, cells, strict=True))))
    if not rows:
        raise ManifestError(f"{path}: no rows below the header; add one row per video")
    return Table(path=path, columns=tuple(columns), rows=tuple(rows))


def _numbered_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if b"\0" in data:
        raise ManifestError(f"{path}: contains NUL bytes; save it as CSV in UTF-8, not UTF-16")
    text = data.decode("utf-8-sig", errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise ManifestError(f"{path}, line {line}: not valid CSV ({error}); check the double quotes") from error


def summarize(items: Sequence[str], noun: str) -> str:
    """Format items for a message: their count and the first few, such as ``7 rows (a; b; c; d; e; and 2 more)``."""
    shown = "; ".join(items[:SHOWN_PROBLEMS])
    more = f"; and {len(items) - SHOWN_PROBLEMS} more" if len(items) > SHOWN_PROBLEMS else ""
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'} ({shown}{more})"
