"""Strict reading of CSV, text and JSON files, and checks and messages shared by the manifest modules."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cmd_extract.errors import ManifestError
from cmd_extract.sources.location import Source

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SHOWN_PROBLEMS = 5
"""Maximum number of rows that an error message names; it only counts the others."""

_BUFFER_BYTES = 1 << 20
_NUL_BYTES = "{}: contains NUL bytes; save it as UTF-8 text, not UTF-16, or give the folder of the videos"
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
    lines = read_rows(path)
    header = next(lines, None)
    if header and strip_cells and any(name != name.strip() for name in header.cells):
        # Read again, because quotes count only at the start of a cell, which may follow a space here.
        lines = (row._replace(cells=[c.strip() for c in row.cells]) for row in read_rows(path, skipinitialspace=True))
        header = next(lines, header)
    columns = columns_of_header(path, header)
    rows: list[TableRow] = []
    for line, _, _, cells in lines:
        check_width(path, line, cells, columns)
        rows.append(TableRow(line=line, cells=dict(zip(columns, cells, strict=True))))
    if not rows:
        raise ManifestError(f"{path}: no rows below the header; add one row per video")
    return Table(path=path, columns=columns, rows=tuple(rows))


class CsvRow(NamedTuple):
    """One row of a CSV file, as it is read.

    Attributes:
        line: 1-based line number where the row starts.
        start, stop: position of the row in the file, in bytes.
        cells: text of the cells.
    """

    line: int
    start: int
    stop: int
    cells: list[str]


def columns_of_header(path: Path, header: CsvRow | None) -> tuple[str, ...]:
    """Return the column names of a CSV file.

    Raises:
        ManifestError: there is no header, or it has duplicate names.
    """
    if header is None:
        raise ManifestError(f"{path}: the file is empty; add a header line with the column names")
    for name in header.cells:
        if header.cells.count(name) > 1:
            raise ManifestError(f"{path}, line {header.line}: duplicate column {name!r}; remove one")
    return tuple(header.cells)


def check_width(path: Path, line: int, cells: Sequence[str], columns: Sequence[str]) -> None:
    """Check that a row has one cell per column.

    Raises:
        ManifestError: it has more or fewer.
    """
    if len(cells) != len(columns):
        raise ManifestError(
            f"{path}, line {line}: {len(cells)} cells for {len(columns)} columns ({', '.join(columns)}); put cells "
            "that contain a comma, a quote or a line break in double quotes"
        )


def read_rows(
    path: Path, *, skipinitialspace: bool = False, update: Callable[[bytes], object] | None = None
) -> Iterator[CsvRow]:
    """Read a UTF-8 CSV file row by row, without blank lines; see ``read_table``.

    Args:
        path: the file.
        skipinitialspace: whether to ignore spaces after commas.
        update: called with all bytes of the file, in order, as they are read.

    Raises:
        ManifestError: the file cannot be read or is not CSV.
    """
    line = 1
    try:
        with path.open("rb", buffering=0) as file, contextlib.closing(_CheckedFile(path, file, update)) as checked:
            lines = _Lines(checked)
            reader, start = csv.reader(lines, strict=True, skipinitialspace=skipinitialspace), lines.position
            for cells in reader:
                if cells:
                    yield CsvRow(line, start, lines.position, cells)
                line, start = reader.line_num + 1, lines.position
    except csv.Error as error:
        raise ManifestError(f"{path}, line {line}: not valid CSV ({error}); check the double quotes") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); check the path") from error


class _CheckedFile(io.RawIOBase):
    """The bytes of a text file, which may not contain NUL."""

    def __init__(self, path: Path, file: io.RawIOBase, update: Callable[[bytes], object] | None) -> None:
        super().__init__()
        self._path, self._file, self._update = path, file, update

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        count = self._file.readinto(buffer)
        data = memoryview(buffer)[:count].tobytes()
        if b"\0" in data:
            raise ManifestError(_NUL_BYTES.format(self._path))
        if self._update is not None:
            self._update(data)
        return count


class _Lines:
    """Lines of a UTF-8 file with or without a byte order mark, ends included; other bytes become surrogates.

    Attributes:
        position: end of the last line that was read, in bytes.
    """

    def __init__(self, file: io.RawIOBase) -> None:
        buffered = io.BufferedReader(file, _BUFFER_BYTES)
        self.position = 0
        if buffered.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
            self.position = len(buffered.read(len(codecs.BOM_UTF8)))
        self._stream = io.TextIOWrapper(buffered, encoding="utf-8", errors="surrogateescape", newline="")

    def __iter__(self) -> Iterator[str]:
        for line in self._stream:
            self.position += len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))
            yield line


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
        raise ManifestError(_NUL_BYTES.format(path))
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
