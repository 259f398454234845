"""What ``run.json`` tells of the run that filled an output folder, and whether this release may go on with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cmd_extract import schema
from cmd_extract.config import ExtractConfig
from cmd_extract.errors import ShardError
from cmd_extract.manifest.records import read_manifest
from cmd_extract.schema import VideoRecord, hash_records


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """What ``run.json`` tells of the run that filled a folder.

    Attributes:
        records: the manifest's rows.
        root, manifest: folder that relative paths start from; the manifest file.
        config: the extraction configuration.
        videos_per_shard, ffmpeg_version: rows a shard; of the FFmpeg at work.
    """

    records: tuple[VideoRecord, ...]
    root: Path
    manifest: Path
    config: ExtractConfig
    videos_per_shard: int
    ffmpeg_version: str


def read_recorded_run(
    folder: Path, manifest: Path | None = None, root: Path | None = None, *, to_write: bool = False
) -> RecordedRun:
    """Reads ``run.json`` and the manifest it names.

    Args:
        folder: the output folder.
        manifest, root: where these are now, if they were moved.
        to_write: whether anything is to be written there.

    Raises:
        ShardError: the manifest is gone, or is not the one that was extracted; to write there, the folder is of another
            format version.
    """
    path = folder / schema.RUN_NAME
    if not path.exists():
        raise ShardError(f"{folder}: no {schema.RUN_NAME}; give a folder that `cmd-extract run` writes to")
    try:
        record = json.loads(path.read_text("utf-8"))
        manifest, root, described = manifest or Path(record["manifest"]), root or Path(record["root"]), record["config"]
        config = ExtractConfig(**{f.name: described[f.name] for f in fields(ExtractConfig)})
        rows, ffmpeg = int(record["videos_per_shard"]), str(described["ffmpeg"])
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ShardError(f"{path}: does not tell of a run of this release ({error})") from None
    if to_write:
        check_version(folder, record)
    if not manifest.exists():
        raise ShardError(f"{manifest}: the manifest of this extraction is gone; name it with --manifest")
    records = read_manifest(manifest, root=root, check_paths=False)
    if hash_records(records) != record["manifest_hash"]:
        raise ShardError(f"{manifest}: is not what it was when {folder} was extracted; name the right one")
    return RecordedRun(
        records=records, root=root, manifest=manifest, config=config, videos_per_shard=rows, ffmpeg_version=ffmpeg
    )


def check_version(out: Path, record: Mapping[str, Any]) -> None:
    """Refuses to add to an output folder of another format version.

    Args:
        out: the folder.
        record: its ``run.json``.

    Raises:
        ShardError: the folder can be read, but not be gone on with.
    """
    version = record.get("version")
    if record.get("format") == schema.FORMAT_NAME and version != schema.FORMAT_VERSION:
        raise ShardError(
            f"{out} holds an extraction of shard format version {version}, this release writes version "
            f"{schema.FORMAT_VERSION}. Nothing was changed; extract into another folder, or finish it with the release "
            "that began it. What is complete there can be verified, inspected, trained and evaluated on as it is."
        )
