"""Reading and writing of manifests: CSV files that list the videos of a dataset, one per row.

``data_manifests/README.md`` documents the columns for users. Other modules of this package create manifests.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from pathlib import Path

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.rows import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    SPLIT_COLUMN,
    ManifestFile,
    cell_problem,
    is_split_column,
)
from cmd_extract.manifest.table import csv_bytes, normalization_hint, summarize
from cmd_extract.schema import VideoRecord
from cmd_extract.sources.access import problem_of
from cmd_extract.sources.location import Root, Source, locate
from cmd_extract.system.files import atomic_write, remove_leftovers


def read_manifest(path: Path, *, root: Root | None = None, check_paths: bool = True) -> tuple[VideoRecord, ...]:
    """Read a manifest.

    Args:
        path: the CSV file.
        root: base folder, or URL prefix, of relative video paths; the manifest's folder if None.
        check_paths: whether every video must exist; remote files are not looked for.

    Returns:
        One record per row, in the file's order, with paths as written.

    Raises:
        ManifestError: the file is invalid or a video is missing; names the file, line, column and value.
    """
    records: list[VideoRecord] = []
    lines: list[int] = []
    for block in ManifestFile(path).blocks():
        records += block.records()
        lines += block.lines
    if check_paths:
        _check_videos(path, records, [f"line {line}" for line in lines], path.parent if root is None else root)
    return tuple(records)


def _check_videos(manifest: Path, records: Sequence[VideoRecord], places: Sequence[str], root: Root) -> None:
    absent = []
    for place, record in zip(places, records, strict=True):
        source = resolve_path(record, root)
        if problem := problem_of(source):
            why = "" if isinstance(source, Path) else f": {problem}"
            absent.append((f"{place}, column 'path': {record.path!r} (id {record.video_id!r}){why}", source))
    if absent:
        raise ManifestError(
            f"{manifest}: {summarize([text for text, _ in absent], 'video')} of {len(records)} not found below "
            f"{str(root)!r}; correct the paths or give another --root{normalization_hint(absent[0][1])}"
        )


def resolve_path(record: VideoRecord, root: Root) -> Source:
    """Return the location of a video: relative paths start at ``root``."""
    return locate(record.path, root)


def write_manifest(records: Iterable[VideoRecord], path: Path) -> None:
    r"""Write a manifest that ``read_manifest`` reads back as the same records.

    The file is written atomically. Its bytes depend on the records only: UTF-8, ``\n`` line ends, columns id, path,
    label, group and then the split columns in the first record's order.

    Args:
        records: at least one, numbered from 0, all with the same split columns.
        path: file to create or replace; missing folders are created.

    Raises:
        ManifestError: ``read_manifest`` would reject the records, or the name of the file is too long.
    """
    records = tuple(records)
    check_records(records)
    split_columns = tuple(records[0].splits)
    rows: list[tuple[str, ...]] = [(*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, *split_columns)]
    for record in records:
        splits = (record.splits[name] for name in split_columns)
        rows.append((record.video_id, record.path, record.label, record.group, *splits))
    try:
        remove_leftovers(path.parent)
        with atomic_write(path) as temporary:
            temporary.write_bytes(csv_bytes(rows))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ManifestError(
                f"{path}: the file system does not allow such long names; choose a shorter one"
            ) from None
        raise


def check_records(records: Sequence[VideoRecord], places: Sequence[str] | None = None) -> None:
    """Check that records form a valid manifest.

    Args:
        records: in order, numbered from 0.
        places: location of each record in its source, for messages; ``row N`` if None.

    Raises:
        ManifestError: there are no records, they are not numbered in order, split columns differ, an id is not unique,
            or ``read_manifest`` would reject a text; names the row, counted from 0, and the id.
    """
    if not records:
        raise ManifestError("no videos: a manifest needs at least one row")
    split_columns = set(records[0].splits)
    wrong = [name for name in records[0].splits if not is_split_column(name)]
    if wrong:
        raise ManifestError(f"split column {wrong[0]!r}: the name must match {SPLIT_COLUMN.pattern}")
    row_of_id: dict[str, int] = {}
    for row, record in enumerate(records):
        place = f"{f'row {row}' if places is None else places[row]} (id {record.video_id!r})"
        if record.row != row:
            raise ManifestError(f"{place}: row number is {record.row}; rows must be numbered from 0 in order")
        if set(record.splits) != split_columns:
            raise ManifestError(
                f"{place}: has split columns {sorted(record.splits)}, row 0 has {sorted(split_columns)}"
            )
        cells = {"id": record.video_id, "path": record.path, "label": record.label, "group": record.group}
        problem = cell_problem({**cells, **record.splits})
        if problem is not None:
            raise ManifestError(f"{place}, path {record.path!r}: {problem[0]} {problem[1]}")
        if not _survives_utf8(record.path):
            raise ManifestError(f"{place}: path {record.path!r} cannot be written as UTF-8; rename the file")
        earlier = row_of_id.setdefault(record.video_id, row)
        if earlier != row:
            raise ManifestError(
                f"{place}, path {record.path!r}: {f'row {earlier}' if places is None else places[earlier]}, path "
                f"{records[earlier].path!r}, has the same id; give every video a unique id"
            )


def _survives_utf8(text: str) -> bool:
    try:
        data = text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return data.decode("utf-8", errors="surrogateescape") == text
