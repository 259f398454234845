"""Manifests of generic sources: CSV files with a path column, lists without a header, and folders of class folders.

``datasets``, ``kinetics`` and ``json_datasets`` do the same for datasets with official split files. The functions read
the source, check that the videos exist and return records; they write nothing.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.records import check_records
from cmd_extract.manifest.rows import PARTS, is_split_column
from cmd_extract.manifest.table import (
    name_problem,
    normalization_hint,
    normalization_notes,
    read_table,
    summarize,
    text_lines,
)
from cmd_extract.schema import VideoRecord
from cmd_extract.sources.access import is_remote, problem_of
from cmd_extract.sources.location import RemoteFile, Source, is_url, locate, relative_text

# fmt: off
VIDEO_EXTENSIONS = frozenset({
    ".3gp", ".asf", ".avi", ".dv", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
})
# fmt: on
"""File name extensions of videos, in lower case."""

PART_OF_NAME = {part: part for part in PARTS} | {
    "training": "train",
    "testing": "test",
    "valid": "val",
    "validate": "val",
    "validation": "val",
}
"""Maps the names of split parts in datasets to those in manifests."""


_PART_FILLERS = re.compile(r"videos?|clips?|split|set|data|kinetics|k?\d+p?")
_LIST_LINE = re.compile(
    rf"(?P<path>.+(?:{'|'.join(re.escape(e) for e in sorted(VIDEO_EXTENSIONS))}))(?:\s+(?P<label>.*))?", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class ManifestSource:
    """Manifest rows read from a source.

    Attributes:
        records: the rows; paths of videos below the root are relative to it, others absolute.
        notes: messages to the user about what was ignored, assumed or skipped.
        missing: names of all listed videos that were not found and skipped.
    """

    records: tuple[VideoRecord, ...]
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceVideo:
    """One video of a source, before it is assigned a row.

    Attributes:
        place: location in the source, for messages, such as ``list.csv, line 3``.
        file: location, absolute if local.
        video_id, label, group, splits: as in ``VideoRecord``.
    """

    place: str
    file: Source
    video_id: str
    label: str = ""
    group: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> PurePosixPath:
        """The location as a path, for its parts."""
        return PurePosixPath(str(self.file))


def absolute_folder(folder: Path) -> Path:
    """Return the absolute path of a folder without ``..``, keeping symbolic links where possible.

    Raises:
        ManifestError: the folder does not exist.
    """
    if not folder.is_dir():
        raise ManifestError(f"{folder}: no such folder; check the path")
    lexical = Path(os.path.normpath(folder.absolute()))
    # If link is a symbolic link, a/link/.. is not a; in that case all links must be resolved.
    return lexical if lexical.is_dir() and lexical.samefile(folder) else folder.resolve()


def is_video_name(name: str) -> bool:
    """Return whether a file name has a video extension."""
    return PurePosixPath(name).suffix.lower() in VIDEO_EXTENSIONS


def part_of_folder(name: str) -> str | None:
    """Return the split part that a folder is named after (``train``, ``Validation``, ``videos_val``, ``train_256``)."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    parts = [PART_OF_NAME[word] for word in words if word in PART_OF_NAME]
    others = [word for word in words if word not in PART_OF_NAME]
    return parts[0] if len(parts) == 1 and all(map(_PART_FILLERS.fullmatch, others)) else None


def usable_name(text: str) -> str:
    """Return a file or folder name as an id or label, with characters that ``name_problem`` rejects percent-encoded."""
    if name_problem(text) is None:
        return text
    start, stop = len(text) - len(text.lstrip()), len(text.rstrip())
    kept = (start <= index < stop and name_problem(f"_{c}_") is None for index, c in enumerate(text))
    return "".join(c if keep else _percent(c) for c, keep in zip(text, kept, strict=True))


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", errors="surrogateescape"))


def ids_of_paths(paths: Sequence[str]) -> tuple[str, ...]:
    """Return an id for each path: the path without its video extension, or with it where ids would collide."""
    stems = [str(PurePosixPath(path).with_suffix("")) if is_video_name(path) else path for path in paths]
    uses = Counter(stems)
    return tuple(usable_name(path if uses[stem] > 1 else stem) for path, stem in zip(paths, stems, strict=True))


def assemble(
    source: Path | RemoteFile,
    videos: Sequence[SourceVideo],
    *,
    root: Path,
    notes: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> ManifestSource:
    """Create manifest rows from videos, in the given order.

    Args:
        source: what the user gave, for messages.
        videos: at least one.
        root: folder that the paths of videos below it are relative to.
        notes, missing: see ``ManifestSource``.

    Raises:
        ManifestError: a file does not exist, or an id, label or group is invalid; names its location. Remote files are
            not looked for.
    """
    absent = {video: problem for video in videos if (problem := problem_of(video.file))}
    if absent:
        reasons = {v: "" if isinstance(v.file, Path) else f" ({problem})" for v, problem in absent.items()}
        listed = summarize([f"{video.place}: {str(video.file)!r}{why}" for video, why in reasons.items()], "video")
        hint = normalization_hint(next(iter(absent)).file)
        raise ManifestError(f"{source}: {listed} of {len(videos)} not found; check the paths{hint}")
    remote = sum(is_remote(video.file) for video in videos)
    if remote and isinstance(source, Path):  # not if they were listed
        notes = [*notes, f"{source}: {remote} remote videos; whether they exist was not checked"]
    if not videos:
        raise ManifestError(f"{source}: no videos found; video extensions: {' '.join(sorted(VIDEO_EXTENSIONS))}")
    # The root need not exist yet: it may be the manifest's new folder.
    exists = os.path.isdir(root)  # noqa: PTH112 (Path.is_dir raises for overlong names)
    base = absolute_folder(root) if exists else Path(os.path.normpath(root.absolute()))
    records = tuple(
        VideoRecord(
            row=row,
            video_id=video.video_id,
            path=relative_text(video.file, base),
            label=video.label,
            group=video.group,
            splits=video.splits,
        )
        for row, video in enumerate(videos)
    )
    check_records(records, [video.place for video in videos])
    look_alikes = [
        f"{source}: {note}"
        for noun in ("label", "group", "video_id")
        for note in normalization_notes((getattr(r, noun) for r in records), f"{noun.removeprefix('video_')}s")
    ]
    return ManifestSource(records=records, notes=(*notes, *look_alikes), missing=tuple(missing))


def from_csv(csv_path: Path, *, root: Path, videos: Path | None = None) -> ManifestSource:
    """Read manifest rows from a CSV file with a ``path`` column.

    Format: UTF-8, comma-separated, with a header. ``path`` is required; ``id``, ``label``, ``group`` and split columns
    are copied; other columns are ignored and listed in a note. Without an ``id`` column the id is the path without its
    extension. Rows keep their order. If the header has spaces after its commas (``path, label``), white space around
    all names and cells is removed.

    Args:
        csv_path: the file.
        root: folder that paths in the manifest are relative to.
        videos: folder that relative paths in the file start from; the file's folder if None.

    Raises:
        ManifestError: the file or a row is invalid; names line and value.
    """
    table = read_table(csv_path, strip_cells=True)
    if "path" not in table.columns:
        raise ManifestError(
            f"{csv_path}, line 1: no column 'path' in the header ({', '.join(table.columns)}); rename the column with "
            "the paths"
        )
    empty = [row.line for row in table.rows if not row.cells["path"] or "\0" in row.cells["path"]]
    if empty:
        raise ManifestError(f"{csv_path}, line {empty[0]}, column 'path': is empty; enter the path of the video")
    folder = absolute_folder(csv_path.parent if videos is None else videos)
    paths = [row.cells["path"] for row in table.rows]
    ids = [row.cells["id"] for row in table.rows] if "id" in table.columns else ids_of_paths(paths)
    for row, video_id in zip(table.rows, ids, strict=True):
        if not video_id:
            raise ManifestError(f"{csv_path}, line {row.line}, column 'id': is empty; give the row a unique id")
    split_columns = [name for name in table.columns if is_split_column(name)]
    found = [
        SourceVideo(
            place=f"{csv_path}, line {row.line}",
            file=locate(path, folder),
            video_id=video_id,
            label=row.cells.get("label", ""),
            group=row.cells.get("group", ""),
            splits={name: PART_OF_NAME.get(row.cells[name].lower(), row.cells[name]) for name in split_columns},
        )
        for row, path, video_id in zip(table.rows, paths, ids, strict=True)
    ]
    ignored = [c for c in table.columns if c not in ("id", "path", "label", "group") and not is_split_column(c)]
    notes = [f"{csv_path}: ignored {summarize([repr(name) for name in ignored], 'column')}"] if ignored else []
    if ignored and "label" not in table.columns:
        notes.append(f"{csv_path}: no labels; if a column has them, rename it to 'label'")
    return assemble(csv_path, found, root=root, notes=notes)


def from_list(list_path: Path, *, root: Path, videos: Path | None = None) -> ManifestSource:
    """Read manifest rows from a list without a header: lines ``path label``, ``path,label`` or ``path``.

    Paths must have a video extension and may contain spaces. Ids are paths without extension. Rows keep their order.

    Args:
        list_path, root, videos: see ``from_csv``.

    Raises:
        ManifestError: a line has another form or a video does not exist; names the line.
    """
    rows = []
    for number, line in text_lines(list_path):
        fields = list_fields(line)
        if fields is None:
            raise ManifestError(
                f"{list_path}, line {number}: {line!r} does not have the form 'video.mp4 label'; for other columns, "
                "add a header line with the column names (path, label, ...)"
            )
        path, label = fields
        rows.append((f"{list_path}, line {number}", path if is_url(path) else os.path.normpath(path), label))
    folder = absolute_folder(list_path.parent if videos is None else videos)
    ids = ids_of_paths([path for _, path, _ in rows])
    found = [
        SourceVideo(place=place, file=locate(path, folder), video_id=video_id, label=label)
        for (place, path, label), video_id in zip(rows, ids, strict=True)
    ]
    return assemble(list_path, found, root=root, notes=[f"{list_path}: no header; read as lines 'path label'"])


def list_fields(line: str) -> tuple[str, str] | None:
    """Return path and label (perhaps empty) of a line of a list without a header; None if it has another form."""
    if "," in line:
        cells = next(csv.reader([line], skipinitialspace=True))
        if len(cells) == 2 and is_video_name(cells[0].strip()):
            return cells[0].strip(), cells[1].strip()
    match = _LIST_LINE.fullmatch(line)
    return (match["path"], match["label"] or "") if match else None


def from_folder(folder: Path, *, root: Path) -> ManifestSource:
    """List all videos below a folder as manifest rows, sorted by path.

    The layout is detected from the folder names:

    - ``<class>/.../<file>``: the first folder is the label, at any depth of the file;
    - ``<part>/<class>/.../<file>`` if every first folder is named after a split part (``train``, ``val``, ``test``,
      ``validation``, ``videos_train``, ...): the parts become the column ``split``;
    - files outside class folders have no label, which pre-training does not need.

    Ids are paths relative to the folder, without extension. Hidden files and folders and files without a video
    extension are ignored and counted in a note. Symbolic links are followed.

    Args:
        folder: the folder.
        root: folder that paths in the manifest are relative to.

    Raises:
        ManifestError: the folder does not exist, contains no videos, or a name is invalid.
    """
    base = absolute_folder(folder)
    return from_names(folder, *list_files(base), file_of=lambda name: base / name, root=root)


def from_names(
    folder: Path | RemoteFile, files: Sequence[str], ignored: int, *, file_of: Callable[[str], Source], root: Path
) -> ManifestSource:
    """Create manifest rows from the names of all files below a folder; see ``from_folder``.

    Args:
        folder: the folder that the user gave, for messages.
        files: names relative to the folder, in order.
        ignored: number of hidden files and folders.
        file_of: returns the location of a name.
        root: folder that paths in the manifest are relative to.

    Raises:
        ManifestError: there are no videos, or a name is invalid.
    """
    names = [file for file in files if is_video_name(file)]
    other = Counter(PurePosixPath(file).suffix.lower() or "no extension" for file in files if not is_video_name(file))
    tops = {name.partition("/")[0]: "/" in name for name in names}
    parts = {top: part for top, is_folder in tops.items() if is_folder and (part := part_of_folder(top))}
    by_part = bool(parts) and len(parts) == len(tops)
    found: list[SourceVideo] = []
    for name, video_id in zip(names, ids_of_paths(names), strict=True):
        folders = name.split("/")[:-1]
        splits = {"split": parts[folders.pop(0)]} if by_part else {}
        label = usable_name(folders[0]) if folders else ""
        place = f"{folder}, file {name!r}"
        found.append(SourceVideo(place=place, file=file_of(name), video_id=video_id, label=label, splits=splits))
    notes: list[str] = []
    if by_part:
        notes.append(f"{folder}: the top-level folders are split parts, written to column 'split'")
    elif parts:
        notes.append(
            f"{folder}: {summarize([repr(top) for top in sorted(parts)], 'top-level folder')} named like split parts, "
            "but taken as classes, because others are not"
        )
    unlabeled = sum(not video.label for video in found)
    if unlabeled:
        notes.append(f"{folder}: {unlabeled} of {len(found)} videos are outside class folders and have no label")
    if other:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(other.items()))
        notes.append(f"{folder}: ignored {other.total()} files without a video extension ({kinds})")
    if ignored:
        notes.append(f"{folder}: ignored {ignored} hidden files and folders")
    return assemble(folder, found, root=root, notes=notes)


def list_files(folder: Path) -> tuple[tuple[str, ...], int]:
    """List all files below a folder.

    Names that start with a dot are hidden, such as the ``._video.mp4`` files of macOS. Links to folders are followed,
    except links to a parent folder.

    Returns:
        Paths relative to the folder, separated by ``/`` and in byte order; number of hidden files and folders.
    """
    files: list[str] = []
    hidden = 0
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while pending:
        prefix, parents = pending.pop()
        here = folder / prefix
        status = here.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in parents:
            continue
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    hidden += 1
                elif entry.is_dir():
                    pending.append((f"{prefix}{entry.name}/", (*parents, identity)))
                else:
                    files.append(f"{prefix}{entry.name}")
    return tuple(sorted(files, key=os.fsencode)), hidden
