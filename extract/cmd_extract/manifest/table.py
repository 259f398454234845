"""CSV files with a header, read strictly, and what every part of the manifest code says of texts it cannot use."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmd_extract.errors import ManifestError

SHOWN_PROBLEMS = 5
"""How many rows an error about many rows names before it only counts."""

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
        line: number of the row's first line in the file, from 1.
        cells: column name to the cell's text, exactly as written.
    """

    line: int
    cells: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A CSV file with a header.

    Attributes:
        path: the file.
        columns: the header, in the file's order; no name twice.
        rows: all rows, in the file's order; entirely empty lines are no rows.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


def name_problem(text: str) -> str | None:
    """What makes a text unfit as an id, label or group; ``None`` if it is fit (the empty text is).

    Names end up in HDF5 strings, JSON, file names, terminals and web pages. Nothing is repaired: a stripped space
    would make two ids one, or a label miss its class.
    """
    if text != text.strip():
        return "begins or ends with white space; remove it"
    if text.isprintable():
        return None
    for position, character in enumerate(text):
        what = _UNUSABLE_CATEGORIES.get(unicodedata.category(character))
        if what is not None:
            return f"holds {what} at position {position}; rename it"
    return None


def read_table(path: Path) -> Table:
    """Read a UTF-8 CSV file with a header; a byte order mark is accepted, cells may hold bytes that are not UTF-8.

    Args:
        path: the file.

    Returns:
        The table; bytes that are not UTF-8 appear as surrogates, as in Python's own file names.

    Raises:
        ManifestError: the file cannot be read, is no CSV text, has no header, names a column twice, holds a row of
            another length than the header, or has no rows.
    """
    lines = _numbered_rows(path)
    header = next(lines, None)
    if header is None:
        raise ManifestError(f"{path}: the file is empty; its first line must name the columns")
    columns = header[1]
    for name in columns:
        if columns.count(name) > 1:
            raise ManifestError(f"{path}, line {header[0]}: column {name!r} appears twice; keep one")
    rows: list[TableRow] = []
    for line, cells in lines:
        if len(cells) != len(columns):
            raise ManifestError(
                f"{path}, line {line}: {len(cells)} cells under {len(columns)} columns ({', '.join(columns)}); "
                "a cell with a comma, a quote or a line break must stand in double quotes"
            )
        rows.append(TableRow(line=line, cells=dict(zip(columns, cells, strict=True))))
    if not rows:
        raise ManifestError(f"{path}: no rows below the header; add a row for each video")
    return Table(path=path, columns=tuple(columns), rows=tuple(rows))


def _numbered_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if b"\0" in data:
        raise ManifestError(f"{path}: holds NUL bytes, so it is not UTF-8 text; save it as CSV in UTF-8 (not UTF-16)")
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


def summarise(items: Sequence[str], noun: str) -> str:
    """``items`` as text for a message: their count, then the first few by name."""
    shown = "; ".join(items[:SHOWN_PROBLEMS])
    more = f"; and {len(items) - SHOWN_PROBLEMS} more" if len(items) > SHOWN_PROBLEMS else ""
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'} ({shown}{more})"
