"""Strict reading of CSV, text and JSON files, and checks and messages shared by the manifest modules."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmd_extract.errors import ManifestError
from cmd_extract.sources.location import Source

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


def read_table(path: Path, *, strip_cells: bool = False) -> Table:
    """Read a UTF-8 CSV file with a header.

    A byte order mark is accepted. Bytes that are not UTF-8 become surrogates, as in Python's file names.

    Args:
        path: the file.
        strip_cells: whether to remove white space around names and cells if the header has some, as in ``path, label``.

    Raises:
        ManifestError: the file cannot be read, is not CSV, has no header, no rows or duplicate columns, or a row has
            more or fewer cells than the header.
    """
    lines = _numbered_rows(path)
    header = next(lines, None)
    if header is None:
        raise ManifestError(f"{path}: the file is empty; add a header line with the column names")
    if strip_cells and any(name != name.strip() for name in header[1]):
        # Read again, because quotes count only at the start of a cell, which may follow a space here.
        lines = ((line, [c.strip() for c in cells]) for line, cells in _numbered_rows(path, skipinitialspace=True))
        header = next(lines, header)
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


def csv_bytes(rows: Iterable[Iterable[object]]) -> bytes:
    r"""Return a CSV file with ``\n`` line ends from which ``csv.reader`` reads the same texts.

    If lines end with ``\n``, ``csv.writer`` does not quote a lone carriage return, where ``csv.reader`` would end the
    row.
    """
    lines = (",".join(map(_quoted, map(str, row))) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode("utf-8", errors="surrogateescape")


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if any(c in cell for c in ',"\r\n') else cell


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark; other bytes become surrogates.

    Raises:
        ManifestError: the file cannot be read or contains NUL bytes.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if b"\0" in data:
        raise ManifestError(f"{path}: contains NUL bytes; save it as UTF-8 text, not UTF-16")
    return data.decode("utf-8-sig", errors="surrogateescape")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line number and content of the lines of a text file that are not blank, without white space around them.

    Raises:
        ManifestError: see ``read_text``.
    """
    for number, line in enumerate(re.split(r"\r\n|\r|\n", read_text(path)), start=1):
        if line.strip():
            yield number, line.strip()


def read_json(path: Path) -> Any:
    """Read a UTF-8 JSON file, with or without a byte order mark.

    Raises:
        ManifestError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise ManifestError(f"{path}: not valid JSON ({error}); download it again") from None


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder that match a pattern, sorted, without hidden ones such as ``._x.csv`` of macOS."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith(".") and path.is_file())


def _numbered_rows(path: Path, *, skipinitialspace: bool = False) -> Iterator[tuple[int, list[str]]]:
    stream = io.StringIO(read_text(path), newline="")
    reader = csv.reader(stream, strict=True, skipinitialspace=skipinitialspace)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise ManifestError(f"{path}, line {line}: not valid CSV ({error}); check the double quotes") from error


def normalization_notes(texts: Iterable[str], noun: str) -> list[str]:
    """Return a note if some of the texts look the same but differ in Unicode normalization, such as NFC and NFD."""
    first: dict[str, str] = {}
    pairs = []
    for text in dict.fromkeys(texts):
        other = first.setdefault(unicodedata.normalize("NFC", text), text)
        if other != text:
            pairs.append(f"{other!r} ({_form(other)}) and {text!r} ({_form(text)})")
    if not pairs:
        return []
    return [
        f"{summarize(pairs, 'pair')} of {noun} differ in Unicode normalization only; if they mean the same, rename one"
    ]


def _form(text: str) -> str:
    return next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, text)), "neither NFC nor NFD")


def normalization_hint(path: Source) -> str:
    """Return a hint for a missing file if it exists with another Unicode normalization of its name, otherwise ''."""
    if not isinstance(path, Path):
        return ""
    found = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        following = found / part
        if not os.path.lexists(following):
            name = unicodedata.normalize("NFC", part)
            try:
                entries = [entry for entry in os.listdir(found) if unicodedata.normalize("NFC", entry) == name]  # noqa: PTH208 (names, not paths)
            except OSError:
                return ""
            if not entries:
                return ""
            following = found / entries[0]
        found = following
    if str(found) == str(path):
        return ""
    return (
        f"; {str(found)!r} exists, with another Unicode normalization of its name ({_form(str(found))}, in the list: "
        f"{_form(str(path))}): rename the files or convert the list"
    )


def summarize(items: Sequence[str], noun: str, shown_items: int = SHOWN_PROBLEMS) -> str:
    """Format items for a message: their count and the first few, such as ``7 rows (a; b; c; d; e; and 2 more)``."""
    shown = "; ".join(items[:shown_items])
    more = f"; and {len(items) - shown_items} more" if len(items) > shown_items else ""
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'} ({shown}{more})"
