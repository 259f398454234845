"""Detection of the format of a source of manifest rows, from its content."""

from __future__ import annotations

from pathlib import Path

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.json_datasets import json_format
from cmd_extract.manifest.sources import is_video_name, list_fields, list_files
from cmd_extract.manifest.table import read_table, text_lines, visible_files
from cmd_extract.manifest.tar import TAR_GLOB
from cmd_extract.schema import SHARD_GLOB
from cmd_extract.sources.location import is_tar_name


def detect_format(source: Path) -> str:
    """Detect the format of a source.

    Args:
        source: a list of videos, a folder of official split lists, a folder of videos, or tar files.

    Returns:
        ``csv``, ``list``, ``kinetics``, ``ssv2``, ``diving48``, ``ucf101``, ``hmdb51``, ``folder`` or ``tar``.

    Raises:
        ManifestError: no format matches.
    """
    if source.is_file():
        return _format_of_file(source)
    if not source.is_dir():
        raise ManifestError(f"{source}: no such file or folder; check the path")
    for pattern, name in (("trainlist*.txt", "ucf101"), ("*_test_split*.txt", "hmdb51")):
        if visible_files(source, pattern):
            return name
    for path in visible_files(source, "*.json"):
        if (form := json_format(path)) is not None:
            return form
    extracted = any(source.glob(SHARD_GLOB))
    # The tables of failures and damaged videos next to shards are not lists of videos.
    tables = [] if extracted else visible_files(source, "*.csv")
    if any("youtube_id" in first_columns(table) for table in tables):
        return "kinetics"
    if any(is_video_name(file) for file in list_files(source)[0]):
        return "folder"
    if visible_files(source, TAR_GLOB):
        return "tar"
    if extracted:
        raise ManifestError(
            f"{source}: contains shards, the output of an extraction; give the folder or list of videos"
        )
    raise ManifestError(
        f"{source}: contains no trainlist*.txt (ucf101), no *_test_split*.txt (hmdb51), no CSV files with a column "
        "'youtube_id' (kinetics), no JSON lists (ssv2, diving48), no videos (folder) and no tar files (tar); check "
        "the path, or choose a --format"
    )


def first_columns(path: Path) -> tuple[str, ...]:
    """Return the column names in the header of a CSV file; empty if it has none."""
    first = next(text_lines(path), None)
    return () if first is None else tuple(name.strip().strip('"') for name in first[1].split(","))


def _format_of_file(path: Path) -> str:
    if is_tar_name(path.name):
        return "tar"
    if path.suffix.lower() == ".json":
        form = json_format(path)
        if form is None:
            raise ManifestError(
                f"{path}: neither a list of objects with 'id' (ssv2) nor with 'vid_name' (diving48); check the file, "
                "or convert it to CSV with a column 'path'"
            )
        return form
    first = next(text_lines(path), None)
    if first is not None and list_fields(first[1]) is not None:
        return "list"
    columns = read_table(path, strip_cells=True).columns
    if "youtube_id" in columns:
        return "kinetics"
    if "path" in columns:
        return "csv"
    raise ManifestError(
        f"{path}: neither a column 'path' (csv) nor 'youtube_id' (kinetics) in the header ({', '.join(columns)}), and "
        "not a list of lines 'video.mp4 label'; name the column of the video files 'path'"
    )
