"""Read and write the manifest: the CSV file that lists the videos of a data set, one a row.

``data_manifests/README.md`` documents the columns for users. ``cmd_extract.manifest.sources`` and
``cmd_extract.manifest.datasets`` make manifests of what is on disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.table import Table, TableRow, name_problem, read_table, summarise
from cmd_extract.schema import VideoRecord

__all__ = [
    "PARTS",
    "ManifestError",
    "check_records",
    "is_split_column",
    "read_manifest",
    "resolve_path",
    "write_manifest",
]

REQUIRED_COLUMNS = ("id", "path")
OPTIONAL_COLUMNS = ("label", "group")
PARTS = ("train", "val", "test")
"""What a cell of a split column may hold, beside nothing."""

ALLOWED_COLUMNS_TEXT = "id, path, label, group and split columns (split, split1, split2, ...)"

_SPLIT_COLUMN = re.compile(r"split[A-Za-z0-9_-]*")


def is_split_column(name: str) -> bool:
    """Whether a column of this name holds parts: ``split`` and then only letters, digits, ``_`` and ``-``."""
    return _SPLIT_COLUMN.fullmatch(name) is not None


def read_manifest(path: Path, *, root: Path | None = None, check_paths: bool = True) -> tuple[VideoRecord, ...]:
    """Read a manifest.

    Args:
        path: the CSV file.
        root: folder that relative video paths start from; the manifest's own folder if ``None``.
        check_paths: whether every video must exist.

    Returns:
        One record a row, in the file's order; ``record.path`` stays as written.

    Raises:
        ManifestError: anything in the file that cannot be used; names the file, line, column and value.
    """
    table = read_table(path)
    _check_columns(table)
    first_line_of_id: dict[str, int] = {}
    records: list[VideoRecord] = []
    for row, table_row in enumerate(table.rows):
        record = _record(path, row, table_row)
        earlier = first_line_of_id.setdefault(record.video_id, table_row.line)
        if earlier != table_row.line:
            raise ManifestError(
                f"{path}, line {table_row.line}, column 'id': {record.video_id!r} already names the row at line "
                f"{earlier}; give every row its own id"
            )
        records.append(record)
    if check_paths:
        places = [f"line {row.line}" for row in table.rows]
        _check_videos(path, records, places, path.parent if root is None else root)
    return tuple(records)


def _check_columns(table: Table) -> None:
    for name in table.columns:
        if name not in REQUIRED_COLUMNS + OPTIONAL_COLUMNS and not is_split_column(name):
            raise ManifestError(
                f"{table.path}, line 1: unknown column {name!r}; allowed: {ALLOWED_COLUMNS_TEXT}. "
                "'cmd-extract manifest' makes a manifest of a CSV file with other columns"
            )
    missing = [name for name in REQUIRED_COLUMNS if name not in table.columns]
    if missing:
        raise ManifestError(
            f"{table.path}, line 1: no column {' and no column '.join(map(repr, missing))} in the header "
            f"({', '.join(table.columns)}); 'cmd-extract manifest' makes a manifest of a CSV file without ids"
        )


def _record(path: Path, row: int, table_row: TableRow) -> VideoRecord:
    cells = table_row.cells
    splits = {name: part for name, part in cells.items() if is_split_column(name)}
    problem = _cell_problem(cells["id"], cells["path"], cells.get("label", ""), cells.get("group", ""), splits)
    if problem is not None:
        column, reason = problem
        raise ManifestError(f"{path}, line {table_row.line}, column {column!r}: {cells[column]!r} {reason}")
    return VideoRecord(
        row=row,
        video_id=cells["id"],
        path=cells["path"],
        label=cells.get("label", ""),
        group=cells.get("group", ""),
        splits=splits,
    )


def _cell_problem(video_id: str, path: str, label: str, group: str, splits: dict[str, str]) -> tuple[str, str] | None:
    """Column and reason of the first cell that cannot be used."""
    if not video_id:
        return "id", "is empty; give the row an id of its own"
    if not path:
        return "path", "is empty; write where the video lies"
    for column, text in (("id", video_id), ("label", label), ("group", group)):
        reason = name_problem(text)
        if reason is not None:
            return column, reason
    if "\0" in path:
        return "path", "holds a NUL, which no file name can"
    for column, part in splits.items():
        if part and part not in PARTS:
            return column, f"is no part; allowed: {', '.join(PARTS)}, or nothing for a video in none of them"
    return None


def _check_videos(where: Path, records: Sequence[VideoRecord], places: Sequence[str], root: Path) -> None:
    missing = [
        f"{place}, column 'path': {record.path!r} (id {record.video_id!r})"
        for place, record in zip(places, records, strict=True)
        if not os.path.isfile(resolve_path(record, root))  # noqa: PTH113 (Path.is_file raises for names too long)
    ]
    if missing:
        raise ManifestError(
            f"{where}: {summarise(missing, 'row')} of {len(records)} point to no file below {str(root)!r}; correct the "
            "paths or name another root"
        )


def resolve_path(record: VideoRecord, root: Path) -> Path:
    """Where the video of a record lies: ``root / record.path``; an absolute path stands for itself."""
    return root / record.path


def write_manifest(records: Iterable[VideoRecord], path: Path) -> None:
    r"""Write a manifest that ``read_manifest`` reads back as the same records.

    The file appears whole or not at all. Its bytes depend on the records only: UTF-8, ``\n`` line ends, columns id,
    path, label, group and then the split columns in the first record's order.

    Args:
        records: at least one; ``row`` counts from 0, every record has the same split columns.
        path: the file to write; folders that are missing are made, a file that is there is replaced.

    Raises:
        ManifestError: records that ``read_manifest`` would refuse.
    """
    records = tuple(records)
    check_records(records)
    split_columns = tuple(records[0].splits)
    lines = [",".join(_quoted(cell) for cell in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, *split_columns))]
    for record in records:
        cells = (record.video_id, record.path, record.label, record.group, *(record.splits[s] for s in split_columns))
        lines.append(",".join(_quoted(cell) for cell in cells))
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", errors="surrogateescape")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_records(records: Sequence[VideoRecord], places: Sequence[str] | None = None) -> None:
    """Check that records can stand in one manifest.

    Args:
        records: in order, ``row`` counting from 0.
        places: where the user finds each record, for the messages; ``row N`` if ``None``.

    Raises:
        ManifestError: no records, rows out of order, unequal split columns, an id used twice, or a text that
            ``read_manifest`` would refuse; names the row, counted from 0, and the id.
    """
    if not records:
        raise ManifestError("no videos: a manifest needs at least one row")
    split_columns = set(records[0].splits)
    wrong = [name for name in records[0].splits if not is_split_column(name)]
    if wrong:
        raise ManifestError(f"split column {wrong[0]!r}: its name must match {_SPLIT_COLUMN.pattern}")
    row_of_id: dict[str, int] = {}
    for row, record in enumerate(records):
        place = f"{f'row {row}' if places is None else places[row]} (id {record.video_id!r})"
        if record.row != row:
            raise ManifestError(f"{place}: its row number is {record.row}; rows count from 0 in order")
        if set(record.splits) != split_columns:
            raise ManifestError(f"{place}: split columns {sorted(record.splits)}, row 0 has {sorted(split_columns)}")
        splits = dict(record.splits)
        problem = _cell_problem(record.video_id, record.path, record.label, record.group, splits)
        if problem is not None:
            raise ManifestError(f"{place}, path {record.path!r}: its {problem[0]} {problem[1]}")
        if not _survives_utf8(record.path):
            raise ManifestError(f"{place}: path {record.path!r} cannot be written as UTF-8; rename the file")
        earlier = row_of_id.setdefault(record.video_id, row)
        if earlier != row:
            raise ManifestError(
                f"{place}, path {record.path!r}: {f'row {earlier}' if places is None else places[earlier]}, path "
                f"{records[earlier].path!r}, has the same id; give every video its own"
            )


def _survives_utf8(text: str) -> bool:
    try:
        data = text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return data.decode("utf-8", errors="surrogateescape") == text


def _quoted(cell: str) -> str:
    # csv.writer leaves a lone carriage return unquoted when lines end with \n, and csv.reader then ends the row there.
    return '"' + cell.replace('"', '""') + '"' if any(c in cell for c in ',"\r\n') else cell
