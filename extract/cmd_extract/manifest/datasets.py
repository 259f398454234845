"""Manifests of UCF101 and HMDB51, from their official split files.

The split files are read as published. Every listed video must exist, in the folder layout in which the dataset is
distributed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.sources import (
    ManifestSource,
    SourceVideo,
    absolute_folder,
    assemble,
)
from cmd_extract.manifest.table import summarize, text_lines, visible_files

_UCF_LIST = re.compile(r"(train|test)list(\d+)\.txt")
_UCF_LINE = re.compile(
    r"(?P<label>[^/]+)/(?P<stem>(?P<group>v_.+_g\d+)_c\d+)\.(?P<extension>\w+)(?:\s+(?P<number>\d+))?"
)
_HMDB_LIST = re.compile(r"(?P<label>.+)_test_split(?P<split>\d+)\.txt")
_HMDB_LINE = re.compile(r"(?P<name>\S.*?)\s+(?P<part>[012])")
_HMDB_PARTS = {"0": "", "1": "train", "2": "test"}
# Suffix of HMDB51 clip names: visible body parts, camera motion, number of people, view, quality, clip number.
_HMDB_ATTRIBUTES = re.compile(r"_[a-z]_(?:cm|nm)_np\d+_[a-z]{2}_[a-z]{3}_\d+$")


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """A video in the split files: location of its first mention, and its part in each split read so far."""

    place: str
    label: str
    group: str
    parts: dict[str, str]


def _set_part(listed: _Listed, split: str, part: str, place: str) -> None:
    earlier = listed.parts.setdefault(split, part)
    if earlier != part:
        raise ManifestError(
            f"{place}: listed as {part or 'unused'!r}, but earlier as {earlier or 'unused'!r} ({split})"
        )


def _listed_videos(listed: Mapping[str, _Listed], videos: Path, split_columns: list[str]) -> list[SourceVideo]:
    return [
        SourceVideo(
            place=video.place,
            file=videos / name,
            video_id=str(PurePosixPath(name).with_suffix("")),
            label=video.label,
            group=video.group,
            splits={column: video.parts.get(column, "") for column in split_columns},
        )
        for name, video in sorted(listed.items())
    ]


def from_ucf101(videos_dir: Path, splits_dir: Path, *, root: Path) -> ManifestSource:
    """Read the manifest rows of UCF101.

    Format: ``trainlist01.txt`` to ``03`` with lines ``ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1``, ``testlist01``
    to ``03`` without the number, and optionally ``classInd.txt`` with lines ``1 ApplyEyeMakeup``, against which numbers
    and labels are checked. Any number of splits is accepted if every split has both lists. The group is
    ``v_ApplyEyeMakeup_g08``: clips of one source video, which are in the same part of every official split. Rows are
    sorted by path; ids are the listed names without extension (``class/name``).

    Args:
        videos_dir: folder of the class folders.
        splits_dir: folder of the split files.
        root: folder that paths in the manifest are relative to.

    Raises:
        ManifestError: split files are missing, invalid or contradictory, or videos are missing; names file and line.
    """
    lists = [(path, match) for path in visible_files(splits_dir, "*.txt") if (match := _UCF_LIST.fullmatch(path.name))]
    if not lists:
        raise ManifestError(
            f"{splits_dir}: no trainlist01.txt and testlist01.txt; give the folder of the UCF101 split files"
        )
    seen = {(int(match[2]), match[1]) for _, match in lists}
    for split in sorted({number for number, _ in seen}):
        for part in ("train", "test"):
            if (split, part) not in seen:
                raise ManifestError(
                    f"{splits_dir}: {part}list{split:02d}.txt is missing; every split needs a train and a test list"
                )
    class_numbers = _ucf_class_numbers(splits_dir / "classInd.txt")
    listed: dict[str, _Listed] = {}
    for path, match in lists:
        for number, line in text_lines(path):
            place = f"{path}, line {number}"
            fields = _UCF_LINE.fullmatch(line)
            if fields is None:
                raise ManifestError(f"{place}: {line!r} does not have the form 'Class/v_Class_g01_c01.avi 1'")
            _check_ucf_class(fields, class_numbers, place)
            name = f"{fields['label']}/{fields['stem']}.{fields['extension']}"
            video = listed.setdefault(
                name, _Listed(place=place, label=fields["label"], group=fields["group"], parts={})
            )
            _set_part(video, f"split{int(match[2])}", match[1], place)
    columns = [f"split{number}" for number in sorted({number for number, _ in seen})]
    return assemble(splits_dir, _listed_videos(listed, absolute_folder(videos_dir), columns), root=root)


def _ucf_class_numbers(path: Path) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for line_number, line in text_lines(path) if path.is_file() else ():
        match = re.fullmatch(r"(\d+)\s+(\S+)", line)
        if match is None:
            raise ManifestError(f"{path}, line {line_number}: {line!r} does not have the form '1 ApplyEyeMakeup'")
        numbers[match[2]] = int(match[1])
    return numbers


def _check_ucf_class(fields: re.Match[str], class_numbers: Mapping[str, int], place: str) -> None:
    label, number = fields["label"], fields["number"]
    if not class_numbers:
        return
    if label not in class_numbers:
        raise ManifestError(f"{place}: class {label!r} is not in classInd.txt")
    if number is not None and int(number) != class_numbers[label]:
        raise ManifestError(f"{place}: class number {number}, but {class_numbers[label]} for {label} in classInd.txt")


def from_hmdb51(videos_dir: Path, splits_dir: Path, *, root: Path) -> ManifestSource:
    """Read the manifest rows of HMDB51.

    Format: for each class ``<class>_test_split1.txt`` to ``3`` with lines ``name.avi 0|1|2``: 1 is train, 2 is test,
    0 is neither. Videos are ``<class>/name.avi``. The group is the source film, see ``hmdb51_film``; a note counts the
    names without one. Rows are sorted by path; ids are ``class/name`` without extension.

    Args:
        videos_dir: folder of the class folders.
        splits_dir: folder of the split files.
        root: folder that paths in the manifest are relative to.

    Raises:
        ManifestError: split files are missing, invalid or contradictory, or videos are missing; names file and line.
    """
    lists = {
        (match["label"], int(match["split"])): path
        for path in visible_files(splits_dir, "*.txt")
        if (match := _HMDB_LIST.fullmatch(path.name))
    }
    if not lists:
        raise ManifestError(f"{splits_dir}: no <class>_test_split1.txt; give the folder of the HMDB51 split files")
    splits = sorted({split for _, split in lists})
    for label in sorted({label for label, _ in lists}):
        for split in splits:
            if (label, split) not in lists:
                raise ManifestError(
                    f"{splits_dir}: {label}_test_split{split}.txt is missing, although other classes have this split"
                )
    listed: dict[str, _Listed] = {}
    for (label, split), path in sorted(lists.items()):
        for number, line in text_lines(path):
            place = f"{path}, line {number}"
            fields = _HMDB_LINE.fullmatch(line)
            if fields is None:
                raise ManifestError(f"{place}: {line!r} does not have the form 'name.avi N' with N = 0, 1 or 2")
            group = hmdb51_film(PurePosixPath(fields["name"]).stem, label)
            video = listed.setdefault(
                f"{label}/{fields['name']}", _Listed(place=place, label=label, group=group, parts={})
            )
            _set_part(video, f"split{split}", _HMDB_PARTS[fields["part"]], place)
    videos = _listed_videos(listed, absolute_folder(videos_dir), [f"split{split}" for split in splits])
    unnamed = [v.place for v in videos if v.group == v.name.stem]
    notes = [f"{splits_dir}: no source film in the names of {summarize(unnamed, 'video')}"] if unnamed else []
    return assemble(splits_dir, videos, root=root, notes=notes)


def hmdb51_film(stem: str, label: str) -> str:
    """Return the source film of an HMDB51 clip.

    It is the part of the name before the last ``_<class>_``; if the name does not contain its class, the part before
    the attributes at its end (``_f_cm_np1_fr_med_2``); without those, the whole name.

    Args:
        stem: file name without extension.
        label: the class.
    """
    film, marker, _ = stem.rpartition(f"_{label}_")
    if marker and film:
        return film
    return _HMDB_ATTRIBUTES.sub("", stem) or stem
