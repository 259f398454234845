"""``run.json``: the record of what an output folder contains, how and where it was made."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cmd_extract import schema
from cmd_extract.errors import ShardError
from cmd_extract.manifest.rows import ManifestFile, Rows
from cmd_extract.run.division import plan_shards
from cmd_extract.run.job import RunJob
from cmd_extract.run.plan import ManifestPart, Planned, ShardLimits
from cmd_extract.run.plan_file import load_plan
from cmd_extract.run.shard_size import estimate_below
from cmd_extract.schema import hash_json
from cmd_extract.sources.location import Root, parse_root, root_text
from cmd_extract.system.files import create_exclusively, write_atomically

_CREATION_SECONDS = 10.0
_POLL_SECONDS = 0.05
_ONLY_ADDED = "rows can only be added at the end (to leave videos out, empty their split cells and relabel)"
_VERSION_PREFIX = "ffmpeg version "
_READER_PACKAGE = "motion-vector-extractor"


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """The extraction that an output folder belongs to. Runs of another one are refused.

    Attributes:
        config: the configuration as stored, see ``ExtractConfig.describe``.
        manifest_rows: number of manifest rows.
        shards: number of shards.
        parts: the manifest rows, in the parts in which they were added.
    """

    config: Mapping[str, Any]
    manifest_rows: int
    shards: int
    parts: tuple[ManifestPart, ...]

    @classmethod
    def of(cls, job: RunJob, planned: Planned) -> RunIdentity:
        """Return the identity of a run."""
        return cls(config=job.described, manifest_rows=planned.rows, shards=len(planned.plans), parts=planned.parts)

    def is_extended_by(self, new: RunIdentity) -> bool:
        """Return whether another run has the same manifest rows, in the same shards, perhaps followed by more."""
        # If sources change while several processes plan the same rows, one of them decides how the rows are divided.
        own, others = ([part._replace(sizes=()) for part in parts] for parts in (self.parts, new.parts))
        return others[: len(own)] == own

    def differences(self, new: RunIdentity) -> list[str]:
        """Describe what differs in another run, setting by setting; added manifest rows are no difference."""
        found = []
        if not self.is_extended_by(new):
            hashes = [[part.manifest_hash for part in identity.parts] for identity in (self, new)]
            if hashes[0] == hashes[1]:
                last, now = self.parts[-1], new.parts[-1]
                found += [
                    f"{name}: {getattr(last, name)!r} is now {getattr(now, name)!r}"
                    for name in ("videos_per_shard", "shard_gb")
                    if getattr(last, name) != getattr(now, name)
                ]
            elif new.manifest_rows < self.manifest_rows:
                found.append(f"manifest: {self.manifest_rows} rows, now {new.manifest_rows}; {_ONLY_ADDED}")
            else:
                found.append(f"manifest: the first {self.manifest_rows} rows, ids or paths have changed; {_ONLY_ADDED}")
        before, after = self.config, new.config
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        found += [f"{key}: {before.get(key)!r} is now {after.get(key)!r}" for key in changed]
        majors = {_major_version(str(config.get("ffmpeg"))) for config in (before, after)}
        if changed == ["ffmpeg"] and len(majors) == 1 and None not in majors:
            name = after["ffmpeg"].removeprefix(_VERSION_PREFIX)
            found[-1] += f"; `cmd-extract run` continues with it if called with --accept-ffmpeg {name}"
        return found


def plan_run(
    out: Path,
    source: Rows,
    videos_per_shard: int | None = None,
    *,
    shard_gb: float | None = None,
    root: Root | None = None,
) -> Planned:
    """Plan the shards of a run; rows that the output folder already has keep their shards.

    Args:
        out: output folder, perhaps of an earlier run.
        source: the manifest.
        videos_per_shard, shard_gb: limits of the shards of new rows, see ``ShardLimits``.
        root: folder, or URL prefix, to which paths in the manifest are relative; None if sizes of source files do not
            count.

    Raises:
        ShardError: the folder has an invalid ``run.json``.
        ValueError: a limit is invalid.
        ManifestError: the manifest is invalid.
    """
    record = read_record(out)
    recorded = record.identity.parts if record else ()
    limits = ShardLimits(videos_per_shard, shard_gb)
    saved = load_plan(out, source, recorded, limits) if isinstance(source, ManifestFile) else None
    return saved or plan_shards(source, recorded, limits, None if root is None else estimate_below(root))


def _major_version(ffmpeg_version: str) -> str | None:
    """Return the major version of an FFmpeg; None for builds without a release number."""
    match = re.match(rf"{_VERSION_PREFIX}n?(\d+)\.", ffmpeg_version)
    return match[1] if match else None


def accept_ffmpeg(job: RunJob, accepted: str | None) -> RunJob:
    """Return the settings with which a run continues an extraction that was started with another FFmpeg.

    The configuration then keeps the recorded version; each shard names the FFmpeg that it was made with in its
    attribute ``software``.

    Args:
        job: settings of the run.
        accepted: version of the run's FFmpeg, if the user accepts it; otherwise None.

    Raises:
        ValueError: the run's FFmpeg is not the accepted one, or the recorded one has another major version.
    """
    if accepted is None:
        return job
    version = job.binary.version
    if accepted.removeprefix(_VERSION_PREFIX) != version.removeprefix(_VERSION_PREFIX):
        raise ValueError(f"accept_ffmpeg: {accepted!r} is not the FFmpeg of this run, {job.binary.path}: {version!r}")
    record = read_record(job.out)
    recorded = str(record.identity.config.get("ffmpeg")) if record else version
    if recorded != version and (_major_version(version) is None or _major_version(version) != _major_version(recorded)):
        raise ValueError(
            f"accept_ffmpeg: {job.out} was extracted with {recorded!r}; only another release of the same major version "
            f"can be accepted, got {version!r}"
        )
    return replace(job, recorded_ffmpeg=recorded)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Totals of an output folder after a run.

    Attributes:
        videos, frames, failures, damaged, shards: counts for the whole folder.
        new_videos, new_frames: counts for this run.
        seconds: wall time of this run.
        size_bytes: size of all shards.
    """

    videos: int
    frames: int
    failures: int
    damaged: int
    shards: int
    new_videos: int
    new_frames: int
    seconds: float
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Content of ``run.json``, as far as it is read back.

    Attributes:
        identity: the extraction.
        root: folder, or URL prefix, to which paths in the manifest are relative.
        manifest: manifest file, if known.
    """

    identity: RunIdentity
    root: Root
    manifest: Path | None


def write_record(job: RunJob, identity: RunIdentity, summary: RunSummary) -> None:
    """Write ``run.json`` when a run ends.

    Software, machine and summary are for information only. Manifest and root are not part of the identity, because
    files may be moved.
    """
    text = _record_text(job, identity, summary)
    write_atomically(job.out / schema.RUN_NAME, text)


def claim_folder(job: RunJob, identity: RunIdentity) -> RunIdentity:
    """Create ``run.json`` in a new output folder when a run starts; check that an existing one is of this extraction.

    If several runs start in an empty folder at the same time, one creates the file, and the others compare themselves
    with it.

    Returns:
        The extraction of the folder.

    Raises:
        ShardError: the folder contains another extraction.
    """
    _check_when_written(job, identity)
    path = job.out / schema.RUN_NAME
    if not path.exists():
        create_exclusively(path, _record_text(job, identity))
    # Another run may have created it between the check and here.
    _check_when_written(job, identity)
    record = read_record(job.out)
    return record.identity if record else identity


def add_rows(job: RunJob, identity: RunIdentity) -> None:
    """Record the new rows of a manifest, if any; a run that is refused before that leaves ``run.json`` as it was."""
    check_folder(job, identity)  # another run may have added other rows
    record = read_record(job.out)
    if record and len(record.identity.parts) < len(identity.parts):
        text = _record_text(job, identity)
        write_atomically(job.out / schema.RUN_NAME, text)


def _check_when_written(job: RunJob, identity: RunIdentity) -> None:
    """Check the folder; without hard links, another process may have created the record without its content yet."""
    path, end = job.out / schema.RUN_NAME, time.monotonic() + _CREATION_SECONDS
    while path.exists() and not path.stat().st_size and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    check_folder(job, identity)


def _record_text(job: RunJob, identity: RunIdentity, summary: RunSummary | None = None) -> str:
    record = {
        "format": schema.FORMAT_NAME,
        "version": schema.FORMAT_VERSION,
        "extractor_version": schema.EXTRACTOR_VERSION,
        **asdict(identity),
        "config_hash": hash_json(identity.config),
        "root": root_text(job.root),
        "manifest": str(job.manifest.absolute()) if job.manifest else None,
    }
    if summary:
        record |= {
            "software": job.software | _reader_version(),
            "ffmpeg_path": job.binary.path,
            "machine": {
                "system": platform.platform(),
                "python": platform.python_version(),
                "cores": os.cpu_count(),
            },
            "summary": asdict(summary),
        }
    return json.dumps(record, indent=1) + "\n"


def _reader_version() -> dict[str, str]:
    """Return the version of the optional reader of vectors, which gives the same vectors as PyAV."""
    try:
        return {_READER_PACKAGE: version(_READER_PACKAGE)}
    except PackageNotFoundError:  # available for x86-64 Linux only
        return {}


def read_record(out: Path) -> RunRecord | None:
    """Read ``run.json`` of an output folder.

    Returns:
        None if there is none.

    Raises:
        ShardError: it is invalid, or of another format version.
        NotADirectoryError: the output folder is a file.
    """
    path = out / schema.RUN_NAME
    try:
        record = json.loads(path.read_text("utf-8"))
        if record["format"] != schema.FORMAT_NAME:
            raise ValueError(f"format {record['format']!r}")
        if record["version"] == schema.FORMAT_VERSION:
            return RunRecord(
                identity=_read_identity(record),
                root=parse_root(record["root"]),
                manifest=Path(record["manifest"]) if record["manifest"] else None,
            )
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise NotADirectoryError(f"{out}: not a folder; choose another output folder") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ShardError(
            f"{path}: not a valid record of an extraction ({type(error).__name__}: {error}); restore the file or "
            "choose another output folder"
        ) from None
    raise ShardError(
        f"{out} contains an extraction of shard format version {record['version']}. This release reads version "
        f"{schema.FORMAT_VERSION}. Nothing was changed; choose another output folder, or use the release that started "
        "the extraction"
    )


def _read_identity(record: dict[str, Any]) -> RunIdentity:
    identity = RunIdentity(**{f.name: record[f.name] for f in fields(RunIdentity)})
    if not isinstance(identity.config, dict):
        raise TypeError(f"config: expected an object, got {identity.config!r}")
    parts = tuple(map(ManifestPart.of, identity.parts))
    numbers = [("manifest_rows", identity.manifest_rows), ("shards", identity.shards)]
    for part in parts:
        numbers += [("rows", part.rows), ("videos_per_shard", part.videos_per_shard)]
        numbers += [("sizes", number) for pair in part.sizes for number in pair]
        if part.sizes and sum(rows * count for rows, count in part.sizes) != part.rows:
            raise ValueError(f"sizes: do not have the {part.rows} rows of their part")
    for name, value in numbers:
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    if not parts or sum(part.rows for part in parts) != identity.manifest_rows:
        raise ValueError(f"parts: do not have the {identity.manifest_rows} manifest rows")
    return replace(identity, parts=parts)


def check_folder(job: RunJob, identity: RunIdentity) -> None:
    """Check that the output folder is new or belongs to this extraction.

    Raises:
        ShardError: the folder contains another extraction.
    """
    record = read_record(job.out)
    if record is None:
        # Another task may have written its first shard since; it wrote its record before that.
        if any(job.out.glob(schema.SHARD_GLOB)) and not (job.out / schema.RUN_NAME).exists():
            raise ShardError(f"{job.out} contains shards but no {schema.RUN_NAME}; choose another output folder")
        return
    if changed := record.identity.differences(identity):
        raise ShardError(
            f"{job.out} contains an extraction with other settings ({'; '.join(changed)}). Nothing was changed; choose "
            "another output folder, or remove this one"
        )
