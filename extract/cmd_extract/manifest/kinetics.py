"""Manifests of Kinetics, from its lists and the folder layouts in which its videos are distributed."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.detect import first_columns
from cmd_extract.manifest.sources import (
    PART_OF_NAME,
    ManifestSource,
    SourceVideo,
    absolute_folder,
    assemble,
    is_video_name,
    list_files,
    part_of_folder,
)
from cmd_extract.manifest.table import TableRow, read_table, summarize, visible_files

_COLUMNS = ("youtube_id", "time_start", "time_end")
_CLIP_NAME = re.compile(r"(?P<id>.+)_(?P<start>\d{1,6})_(?P<end>\d{1,6})")
_SHOWN_DUPLICATES = 50
_PERHAPS_UNTRIMMED = "named after their YouTube id only; make sure that they are cut to the listed times"


@dataclass(frozen=True, kw_only=True)
class _Clip:
    """A row of a list.

    Attributes:
        place: location in the list.
        youtube_id, start, end: the clip; times in whole seconds.
        label, part: class and split part, empty if the list does not state them.
    """

    place: str
    youtube_id: str
    start: int
    end: int
    label: str
    part: str

    @property
    def stem(self) -> str:
        """File name without extension."""
        return f"{self.youtube_id}_{self.start:06d}_{self.end:06d}"


class _Files:
    """The videos below a folder, by the clip in their name.

    Args:
        base: the folder.
        clips: all listed clips; their labels are the names of class folders.
    """

    def __init__(self, base: Path, clips: Sequence[_Clip]) -> None:
        self._labels = {_plain(clip.label) for clip in clips} - {""}
        times = {(clip.youtube_id, clip.start, clip.end) for clip in clips}
        self._clips_of_id = Counter(youtube_id for youtube_id, _, _ in times)
        self._by_clip: dict[tuple[str, int, int], list[str]] = {}
        self._by_id: dict[str, list[str]] = {}
        for name in filter(is_video_name, list_files(base)[0]):
            stem = PurePosixPath(name).stem
            self._by_id.setdefault(stem, []).append(name)
            if match := _CLIP_NAME.fullmatch(stem):
                clip = (match["id"], int(match["start"]), int(match["end"]))
                self._by_clip.setdefault(clip, []).append(name)

    def of(self, clip: _Clip) -> tuple[list[str], list[str]]:
        """Return the files of a clip, and those of its name in a folder of another label or part.

        A video that is named after its YouTube id only counts if the lists have one clip of it. Of several files,
        those in a folder of replacements are returned.
        """
        named = self._by_clip.get((clip.youtube_id, clip.start, clip.end), [])
        if not named and self._clips_of_id[clip.youtube_id] == 1:
            named = self._by_id.get(clip.youtube_id, [])
        matches = [name for name in named if self._is_folder_of(clip, name)]
        replacements = [name for name in matches if _is_replacement(name)]
        return replacements or matches, [name for name in named if name not in matches]

    def _is_folder_of(self, clip: _Clip, name: str) -> bool:
        folders = name.split("/")[:-1]
        labels = {_plain(folder) for folder in folders} & self._labels
        if clip.label and labels:
            return _plain(clip.label) in labels
        parts = {part_of_folder(folder) for folder in folders if _plain(folder) not in self._labels} - {None}
        return not clip.part or not parts or clip.part in parts


def _plain(label: str) -> str:
    """Return a label as it is compared with folder names, which have other characters for spaces and punctuation."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKD", label.casefold()))


def _is_replacement(name: str) -> bool:
    return any("replacement" in folder.lower() for folder in name.split("/")[:-1])


def from_kinetics(csv_path: Path, videos_dir: Path, *, root: Path, missing: str = "error") -> ManifestSource:
    """Read the manifest rows of Kinetics-400, -600 or -700.

    Format: CSV with the columns ``youtube_id,time_start,time_end`` in whole seconds and optionally ``label`` (absent in
    test lists) and ``split``; other columns such as ``is_cc`` are ignored. Files are named
    ``<youtube_id>_<start>_<end>.<extension>``, or ``<youtube_id>.<extension>`` if the lists have one clip of that
    video, at any depth, but not below a folder named after another label or part: ``<split>/<label>/``, ``<label>/``,
    ``<split>/`` (CVDF), ``videos_train/<label>/`` (mmaction2). Files in a folder of replacements are preferred. Folders
    may have other characters for spaces and punctuation. The group is the YouTube id. Rows keep their order; ids are
    YouTube id and six-digit times, for clips with several labels after the label. Labels are those of the list.

    Args:
        csv_path: a list, or a folder whose ``*.csv`` files are read in alphabetical order.
        videos_dir: folder of the videos.
        root: folder that paths in the manifest are relative to.
        missing: ``error`` requires every listed video to exist; ``skip`` leaves out missing videos, counts them in a
            note and lists them in ``ManifestSource.missing``.

    Raises:
        ManifestError: a list is invalid, a video is missing (names the line), or several files match one.
        ValueError: ``missing`` is invalid.
    """
    if missing not in ("error", "skip"):
        raise ValueError(f"missing: must be error or skip, got {missing!r}")
    base = absolute_folder(videos_dir)
    paths, notes = _lists(csv_path)
    clips = [_clip(row, place) for path in paths for place, row in _rows(path)]
    files = _Files(base, clips)
    labels: dict[str, set[str]] = {}
    for clip in clips:
        labels.setdefault(clip.stem, set()).add(clip.label)
    found: list[SourceVideo] = []
    absent: dict[str, str] = {}
    several: list[str] = []
    for clip in clips:
        matches, elsewhere = files.of(clip)
        if len(matches) > 1:
            several.append(f"{clip.place}: {', '.join(map(repr, matches))}")
        elif matches:
            video_id = clip.stem if len(labels[clip.stem]) == 1 else f"{clip.label or 'no label'}/{clip.stem}"
            found.append(_source_video(clip, base / matches[0], video_id))
        else:
            where = f", but {elsewhere[0]!r} is in a folder of another label or part" if elsewhere else ""
            absent[clip.stem] = f"{clip.place}: {clip.stem}{where}"
    if several:
        listed = summarize(several, "video", _SHOWN_DUPLICATES)
        raise ManifestError(f"{csv_path}: several files match {listed}; keep one of each")
    summary = f"{csv_path}: {summarize(list(absent.values()), 'video')} of {len(clips)} not found below {videos_dir}"
    if absent and (missing == "error" or not found):
        raise ManifestError(f"{summary}; add the videos, or use --missing skip to leave them out")
    notes += [f"{summary}; skipped"] * bool(absent) + _notes(csv_path, base, found, labels)
    return assemble(csv_path, found, root=root, notes=notes, missing=tuple(absent))


def _source_video(clip: _Clip, file: Path, video_id: str) -> SourceVideo:
    return SourceVideo(
        place=clip.place,
        file=file,
        video_id=video_id,
        label=clip.label,
        group=clip.youtube_id,
        splits={"split": clip.part},
    )


def _notes(csv_path: Path, base: Path, found: Sequence[SourceVideo], labels: dict[str, set[str]]) -> list[str]:
    replaced = [v.name.name for v in found if _is_replacement(v.name.relative_to(base).as_posix())]
    groups = {
        "taken from a folder of replacements": replaced,
        _PERHAPS_UNTRIMMED: [v.name.name for v in found if v.name.stem == v.group],
    }
    notes = [f"{csv_path}: {summarize(names, 'video')} {text}" for text, names in groups.items() if names]
    double = [stem for stem, names in labels.items() if len(names) > 1]
    if double:
        notes.append(
            f"{csv_path}: {summarize(double, 'clip')} listed under several labels; their ids start with the label"
        )
    return notes


def _lists(csv_path: Path) -> tuple[list[Path], list[str]]:
    """Return the lists of a folder, and notes on other CSV files in it; or the given file."""
    if not csv_path.is_dir():
        return [csv_path], []
    tables = visible_files(csv_path, "*.csv")
    lists = [path for path in tables if _COLUMNS[0] in first_columns(path)]
    if not lists:
        raise ManifestError(
            f"{csv_path}: no CSV files with a column {_COLUMNS[0]!r} in this folder; give a Kinetics list"
        )
    others = [path.name for path in tables if path not in lists]
    return lists, [f"{csv_path}: ignored {summarize(others, 'CSV file')} without {_COLUMNS[0]!r}"] if others else []


def _rows(path: Path) -> Iterator[tuple[str, TableRow]]:
    table = read_table(path, strip_cells=True)
    missing = [column for column in _COLUMNS if column not in table.columns]
    if missing:
        raise ManifestError(f"{path}, line 1: no column {missing[0]!r} ({', '.join(table.columns)})")
    for row in table.rows:
        yield f"{path}, line {row.line}", row


def _clip(row: TableRow, place: str) -> _Clip:
    times: list[int] = []
    for column in ("time_start", "time_end"):
        text = row.cells[column]
        if not re.fullmatch(r"\d{1,6}(\.0*)?", text):
            raise ManifestError(f"{place}, column {column!r}: {text!r} is not a number of whole seconds")
        times.append(int(text.split(".")[0]))
    youtube_id = row.cells["youtube_id"]
    if not re.fullmatch(r"[A-Za-z0-9_-]+", youtube_id):
        raise ManifestError(f"{place}, column 'youtube_id': {youtube_id!r} is not a YouTube id")
    part = row.cells.get("split", "").lower()
    if part and part not in PART_OF_NAME:
        raise ManifestError(f"{place}, column 'split': {part!r} is not one of {', '.join(PART_OF_NAME)}")
    label = row.cells.get("label", "")
    part = PART_OF_NAME[part] if part else ""
    return _Clip(place=place, youtube_id=youtube_id, start=times[0], end=times[1], label=label, part=part)
