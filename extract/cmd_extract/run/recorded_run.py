"""The run that an output folder belongs to, to continue, complete or verify it without its options."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cmd_extract import schema
from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.errors import ShardError
from cmd_extract.manifest.records import read_manifest
from cmd_extract.manifest.rows import ManifestFile
from cmd_extract.run.job import Limits, RunJob
from cmd_extract.run.plan import Planned
from cmd_extract.run.record import plan_run, read_record
from cmd_extract.schema import VideoRecord
from cmd_extract.sources.location import Root


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """The run that an output folder belongs to, restored from ``run.json`` and the manifest.

    Attributes:
        root: folder, or URL prefix, to which paths in the manifest are relative.
        manifest: manifest file.
        config: the extraction configuration.
        planned: the shards.
        ffmpeg_version: version of the FFmpeg that was used.
    """

    root: Root
    manifest: Path
    config: ExtractConfig
    planned: Planned
    ffmpeg_version: str

    @cached_property
    def records(self) -> tuple[VideoRecord, ...]:
        """All manifest rows, read again."""
        return read_manifest(self.manifest, check_paths=False)

    def job(self, out: Path, binary: FfmpegBinary, scratch: Path | None = None, limits: Limits | None = None) -> RunJob:
        """Return the settings to continue the run in ``out``."""
        return RunJob(
            root=self.root,
            out=out,
            scratch=scratch or out,
            config=self.config,
            binary=binary,
            limits=limits or Limits(),
            manifest=self.manifest,
        )


def read_recorded_run(out: Path, manifest: Path | None = None, root: Root | None = None) -> RecordedRun:
    """Restore the run that an output folder belongs to.

    Args:
        out: the output folder.
        manifest, root: their current location, if they were moved.

    Raises:
        ShardError: there is no valid ``run.json``, or the manifest is missing or has changed.
    """
    record = read_record(out)
    if record is None:
        raise ShardError(f"{out}: no {schema.RUN_NAME} found; pass the output folder of `cmd-extract run`")
    identity, manifest, root = record.identity, manifest or record.manifest, root or record.root
    if manifest is None:
        raise ShardError(f"{out / schema.RUN_NAME}: names no manifest; pass it with --manifest")
    try:
        config = ExtractConfig.from_description(identity.config)
        ffmpeg_version = str(identity.config["ffmpeg"])
    except (KeyError, ValueError, TypeError) as error:
        raise ShardError(f"{out / schema.RUN_NAME}: invalid configuration ({error}); restore the file") from None
    if not manifest.exists():
        raise ShardError(f"{manifest}: the manifest of this extraction does not exist; pass its path with --manifest")
    planned = plan_run(out, ManifestFile(manifest))
    if planned.parts != identity.parts:
        raise ShardError(
            f"{manifest}: has changed since {out} was extracted (rows, ids or paths); pass the original manifest with "
            "--manifest"
        )
    return RecordedRun(root=root, manifest=manifest, config=config, planned=planned, ffmpeg_version=ffmpeg_version)
