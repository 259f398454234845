"""Manifests of datasets whose official lists are JSON files: Something-Something v2 and Diving48."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.sources import (
    PART_OF_NAME,
    ManifestSource,
    SourceVideo,
    absolute_folder,
    assemble,
    is_video_name,
    list_files,
)
from cmd_extract.manifest.table import read_json, read_text, summarize, text_lines, visible_files


@dataclass(frozen=True, kw_only=True)
class _Clip:
    """A listed video: its location in the lists, file name without extension, and manifest columns."""

    place: str
    stem: str
    label: str
    group: str
    part: str


def json_format(path: Path) -> str | None:
    """Return ``ssv2`` or ``diving48`` for a JSON list of such videos; None for other files.

    Raises:
        ManifestError: the file looks like a JSON list, but cannot be read.
    """
    # Other JSON files, such as a downloader's information about each video, are objects.
    if not read_text(path).lstrip().startswith("["):
        return None
    items = read_json(path)
    first = items[0] if items and isinstance(items[0], dict) else {}
    return "diving48" if "vid_name" in first else "ssv2" if "id" in first else None


def from_ssv2(lists: Path, videos_dir: Path, *, root: Path) -> ManifestSource:
    """Read the manifest rows of Something-Something v2.

    Format: JSON lists of objects with ``id`` and ``template`` (``Holding [something]``), whose file names contain
    ``train``, ``validation`` or ``test``. Labels are templates without brackets; a list of labels, an object in a file
    named ``*labels*.json``, checks them. Test lists have ids only; their labels come from ``*answers*.csv`` (lines
    ``id;label``), if there. Videos are ``<id>.webm``, or with another extension, at any depth. The split column is
    ``split``. Rows are sorted by file name of the list and keep its order; ids are those of the lists.

    Args:
        lists: one list, or the folder of all.
        videos_dir: folder of the videos.
        root: folder that paths in the manifest are relative to.

    Raises:
        ManifestError: a list is invalid or a video is missing; names file and item.
    """
    folder = lists if lists.is_dir() else lists.parent
    known = {_ssv2_label(name) for path in visible_files(folder, "*labels*.json") for name in read_json(path)}
    answers = dict(_ssv2_answers(folder))
    clips = []
    for path in _json_lists(lists, "ssv2"):
        part = _part_of_list(path)
        for place, item in _items(path, "id"):
            text = item.get("template") or answers.get(item["id"], "")
            label = _ssv2_label(_text(place, {"template": text}, "template"))
            if label and known and label not in known:
                raise ManifestError(
                    f"{place}: template {text!r} is not in the list of labels; download the lists again"
                )
            clips.append(_Clip(place=place, stem=item["id"], label=label, group="", part=part))
    return _assemble(lists, clips, videos_dir, root)


def _ssv2_label(template: str) -> str:
    return " ".join(template.replace("[", "").replace("]", "").split())


def _ssv2_answers(folder: Path) -> Iterator[tuple[str, str]]:
    for path in visible_files(folder, "*answers*.csv"):
        for number, line in text_lines(path):
            video, semicolon, label = line.partition(";")
            if not semicolon:
                raise ManifestError(f"{path}, line {number}: {line!r} does not have the form 'id;label'")
            yield video.strip(), label.strip()


def from_diving48(lists: Path, videos_dir: Path, *, root: Path) -> ManifestSource:
    """Read the manifest rows of Diving48.

    Format: ``Diving48_V2_train.json`` and ``Diving48_V2_test.json``, or those without ``V2``, which are ignored if both
    versions are there: JSON lists of objects with ``vid_name`` and ``label``. ``Diving48_vocab.json``, a list with the
    four words of each class, turns label numbers into names such as ``Back_15som_05Twis_FREE``. Videos are
    ``<vid_name>.mp4``, or with another extension, at any depth. The split column is ``split``. The group is the
    competition video: the name without the number at its end. Ids are the names; rows keep the order of the lists.

    Args:
        lists, videos_dir, root: see ``from_ssv2``.

    Raises:
        ManifestError: a list is invalid or a video is missing; names file and item.
    """
    folder = lists if lists.is_dir() else lists.parent
    names = [
        _diving48_class(path, words) for path in visible_files(folder, "*vocab*.json") for words in read_json(path)
    ]
    paths, notes = _json_lists(lists, "diving48"), []
    newer = [path for path in paths if "v2" in path.stem.lower()]
    if newer and len(newer) < len(paths):
        older = [path.name for path in paths if path not in newer]
        notes, paths = [f"{lists}: ignored {summarize(older, 'list')} of version 1"], newer
    clips = []
    for path in paths:
        part = _part_of_list(path)
        for place, item in _items(path, "vid_name"):
            label = item.get("label", "")
            if names and isinstance(label, int):
                if not 0 <= label < len(names):
                    raise ManifestError(f"{place}: label {label}, but the vocabulary has {len(names)} classes")
                label = names[label]
            group = re.sub(r"_\d+$", "", item["vid_name"])
            clips.append(_Clip(place=place, stem=item["vid_name"], label=str(label), group=group, part=part))
    return _assemble(lists, clips, videos_dir, root, notes)


def _diving48_class(path: Path, words: Any) -> str:
    if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
        return "_".join(words)
    raise ManifestError(f"{path}: {words!r} is not a list of the words of a class; download the file again")


def _json_lists(lists: Path, form: str) -> list[Path]:
    paths = (
        [path for path in visible_files(lists, "*.json") if json_format(path) == form] if lists.is_dir() else [lists]
    )
    if not paths:
        raise ManifestError(
            f"{lists}: contains no JSON lists of the format {form}; give the folder of the official lists"
        )
    return paths


def _part_of_list(path: Path) -> str:
    words = re.split(r"[^a-z]+", path.stem.lower())
    parts = {PART_OF_NAME[word] for word in words if word in PART_OF_NAME}
    if len(parts) != 1:
        raise ManifestError(f"{path}: the name of a list must contain one of {', '.join(PART_OF_NAME)}; rename it")
    return parts.pop()


def _items(path: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield location and content of the objects of a JSON list; ``key`` is the file name without extension."""
    items = read_json(path)
    if not isinstance(items, list) or not items:
        raise ManifestError(f"{path}: not a JSON list of videos; download it again")
    for number, item in enumerate(items, start=1):
        place = f"{path}, item {number}"
        if not isinstance(item, dict):
            raise ManifestError(f"{place}: {item!r} is not an object with {key!r}; download the list again")
        if isinstance(item.get(key), int):
            item[key] = str(item[key])
        if not _text(place, item, key) or "/" in item[key]:
            raise ManifestError(f"{place}, {key!r}: {item[key]!r} is not the name of a video; download the list again")
        yield place, item


def _text(place: str, item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise ManifestError(f"{place}, {key!r}: {value!r} is not a string; download the list again")
    return value


def _assemble(
    lists: Path, clips: Sequence[_Clip], videos_dir: Path, root: Path, notes: Sequence[str] = ()
) -> ManifestSource:
    base = absolute_folder(videos_dir)
    files: dict[str, list[str]] = {}
    for name in filter(is_video_name, list_files(base)[0]):
        files.setdefault(PurePosixPath(name).stem, []).append(name)
    absent = [f"{clip.place}: {clip.stem}" for clip in clips if clip.stem not in files]
    if absent:
        raise ManifestError(
            f"{lists}: {summarize(absent, 'video')} of {len(clips)} not found below {videos_dir}; add the videos"
        )
    several = [f"{c.place}: {', '.join(map(repr, files[c.stem]))}" for c in clips if len(files[c.stem]) > 1]
    if several:
        raise ManifestError(f"{lists}: several files match {summarize(several, 'video')}; keep one of each")
    found = [
        SourceVideo(
            place=clip.place,
            file=base / files[clip.stem][0],
            video_id=clip.stem,
            label=clip.label,
            group=clip.group,
            splits={"split": clip.part},
        )
        for clip in clips
    ]
    return assemble(lists, found, root=root, notes=notes)
