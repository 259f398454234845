"""The files beside the shards (``index.json``, ``run.json``, two tables), and whether a folder may be used."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py

from cmd_extract import schema
from cmd_extract.decode.source import fingerprint
from cmd_extract.errors import ShardError
from cmd_extract.manifest.records import resolve_path
from cmd_extract.run.job import RunJob
from cmd_extract.run.plan import ShardPlan
from cmd_extract.run.record import check_version
from cmd_extract.schema import FailedRow, VideoRecord, hash_records
from cmd_extract.shard.reader import ShardReader
from cmd_extract.shard.verify import damaged_of
from cmd_extract.shard.writer import WrittenShard
from cmd_extract.system.files import write_whole


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Totals of an output folder after a run.

    Attributes:
        videos, frames, failures, damaged, shards: of the whole folder.
        new_videos, new_frames: what this run added.
        seconds: wall time of this run.
        size_bytes: of all shards.
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


def is_finished(plan: ShardPlan, job: RunJob) -> bool:
    """Whether the shard lies in the output folder, complete, of these rows and this configuration.

    One that HDF5 cannot open is not: it is made again.

    Raises:
        PermissionError: it may not be read.
    """
    path = job.out / plan.name
    if not path.exists():
        return False
    try:
        with h5py.File(path, "r", locking=False) as file:
            same_rows = file.attrs.get(schema.ATTR_ROWS_HASH) == plan.rows_hash
            return bool(same_rows and file.attrs.get(schema.ATTR_CONFIG_HASH) == schema.hash_json(job.described))
    except PermissionError:
        raise
    except OSError:
        return False


def failures_of(plan: ShardPlan, job: RunJob) -> list[FailedRow]:
    """The rows of a finished shard that gave no video."""
    reader = ShardReader(job.out / plan.name)
    try:
        return reader.failures()
    finally:
        reader.close()


def check_sources(plan: ShardPlan, job: RunJob) -> list[str]:
    """Names the videos of a finished shard whose files have another length now than when they were extracted.

    Files that are gone are no longer needed. A change that keeps the length is found by ``verify``, which reads all.
    """
    reader = ShardReader(job.out / plan.name)
    records = {record.row: record for record in plan.records}
    changed: dict[int, str] = {}
    for entry, length in zip(reader.entries(), reader.source_bytes(), strict=True):
        path = resolve_path(records[entry.row], job.root)
        with contextlib.suppress(OSError):
            now = path.stat().st_size
            if now != length:
                changed[entry.row] = f"{path}: {length} bytes when extracted, {now} now"
    reader.close()
    return list(changed.values())


def claim_folder(job: RunJob, records: Sequence[VideoRecord], plans: Sequence[ShardPlan]) -> None:
    """Writes what this folder is for, or refuses it if it is for something else.

    Raises:
        ShardError: it is.
    """
    check_folder(job, records, plans)
    path = job.out / schema.RUN_NAME
    if not path.exists():
        _write_json(path, _claim(job, records, plans) | _places(job))


def check_folder(job: RunJob, records: Sequence[VideoRecord], plans: Sequence[ShardPlan]) -> None:
    """Refuses an output folder that is for something else.

    Raises:
        ShardError: it is.
    """
    path = job.out / schema.RUN_NAME
    claim = _claim(job, records, plans)
    if path.exists():
        before = json.loads(path.read_text("utf-8"))
        check_version(job.out, before)
        changed = [
            f"{key}: {before.get(key)!r} is now {claim[key]!r}" for key in claim if before.get(key) != claim[key]
        ]
        old, new = before.get("config", {}), claim["config"]
        # Hashes tell people nothing.
        hidden = ("config:", "config_hash:", "manifest_hash:")
        other_rows = ["manifest: its rows are others"] if before.get("manifest_hash") != claim["manifest_hash"] else []
        changed = other_rows + [c for c in changed if not c.startswith(hidden)]
        changed += [
            f"{k}: {old.get(k)!r} is now {new.get(k)!r}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)
        ]
        if changed:
            raise ShardError(
                f"{job.out} holds an extraction made differently ({'; '.join(changed)}). "
                "Nothing was changed; choose another folder, or remove this one."
            )
        return
    if any(job.out.glob(schema.SHARD_GLOB)) and not path.exists():  # another task may have come first
        raise ShardError(f"{job.out} holds shards but no {schema.RUN_NAME}; choose another folder")


def _claim(job: RunJob, records: Sequence[VideoRecord], plans: Sequence[ShardPlan]) -> dict[str, Any]:
    return {
        "format": schema.FORMAT_NAME,
        "version": schema.FORMAT_VERSION,
        "config": job.described,
        "config_hash": schema.hash_json(job.described),
        "manifest_hash": hash_records(tuple(records)),
        "manifest_rows": len(records),
        "shards": len(plans),
        "videos_per_shard": len(plans[0].records),
    }


def _places(job: RunJob) -> dict[str, str]:
    """Where the run found its videos; not part of what identifies it, since files may be moved."""
    places = {"root": str(job.root.absolute())}
    return places | ({"manifest": str(job.manifest.absolute())} if job.manifest else {})


def write_index(plans: Sequence[ShardPlan], job: RunJob, written: dict[str, WrittenShard]) -> dict[str, Any]:
    """Writes ``index.json`` and both tables: what the folder holds, in manifest order and without times."""
    shards, failures, damaged = [], [], []
    for plan in plans:
        entry = written.get(plan.name) or _describe_existing(job.out / plan.name)
        rows = [plan.records[0].row, plan.records[-1].row + 1]
        shards.append(asdict(entry) | {"rows": rows, "rows_hash": plan.rows_hash})
        if entry.failures:
            failures += failures_of(plan, job)
        if entry.damaged:
            damaged += damaged_of(job.out / plan.name)
    totals = {key: sum(s[key] for s in shards) for key in ("videos", "frames", "failures", "damaged", "size_bytes")}
    index = {
        "format": schema.FORMAT_NAME,
        "version": schema.FORMAT_VERSION,
        "config": job.described,
        "config_hash": schema.hash_json(job.described),
        "totals": totals,
        "shards": shards,
    }
    write_failures(job.out / schema.FAILURES_NAME, failures)
    _write_table(job.out / schema.DAMAGED_NAME, ("row", "id", "damage"), damaged)
    _write_json(job.out / schema.INDEX_NAME, index)
    return index


def _describe_existing(path: Path) -> WrittenShard:
    reader = ShardReader(path)
    entries = reader.entries()
    failures, damaged = len(reader.failures()), len(reader.damaged())
    reader.close()
    return WrittenShard(
        name=path.name,
        sha256=fingerprint(path),
        size_bytes=path.stat().st_size,
        videos=len(entries),
        frames=sum(e.frame_count for e in entries),
        failures=failures,
        damaged=damaged,
    )


def write_failures(path: Path, failures: Iterable[FailedRow]) -> None:
    """Writes ``failures.csv``: row, path, stage, reason."""
    _write_table(path, ("row", "path", "stage", "reason"), failures)


def _write_table(path: Path, columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)

    write_whole(path, write)


def write_run_record(
    job: RunJob, records: Sequence[VideoRecord], plans: Sequence[ShardPlan], summary: RunSummary
) -> None:
    """Writes ``run.json``: what was asked for, with what software, on what machine, and how the last run went."""
    machine = {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    record = (
        _claim(job, records, plans)
        | _places(job)
        | {
            "software": job.software,
            "ffmpeg_path": job.binary.path,
            "machine": machine,
            "summary": asdict(summary),
        }
    )
    _write_json(job.out / schema.RUN_NAME, record)


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=True) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, "utf-8"))
