"""The index, ``failures.csv`` and ``damaged.csv``: what an output folder contains, written when it is complete."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cmd_extract import schema
from cmd_extract.errors import ShardError, run_error
from cmd_extract.manifest.table import csv_bytes
from cmd_extract.run.finished import FinishedShard, file_stamp, read_finished
from cmd_extract.run.index_table import IndexWriter
from cmd_extract.run.plan import ShardPlan, read_each
from cmd_extract.run.state import OutputState
from cmd_extract.run.task_log import ShardLog
from cmd_extract.schema import FailedRow
from cmd_extract.shard.index import ShardEntry, ShardIndex, find_indexes
from cmd_extract.shard.index_format import SHARD_SHA256
from cmd_extract.system.files import scratch_folder, sync, write_atomically

_DAMAGED_COLUMNS = ("row", "id", "damage")
_NOTES_COLUMNS = ("row", "id", "note")


def write_index(
    state: OutputState, written: Mapping[str, FinishedShard], manifest_sha256: str, log: ShardLog
) -> dict[str, int]:
    """Write the index and all tables, in manifest order and without times. An index that is up to date is kept.

    Args:
        state: the output folder before the run.
        written: shards written since, by name.
        manifest_sha256: hash of the bytes of the manifest.
        log: receives shards that had to be read because another process has replaced them since.

    Returns:
        Totals: videos, frames, failures, damaged, size_bytes.

    Raises:
        ShardError: a shard was removed, or replaced by one of another configuration or of other rows.
    """
    out, shards = state.job.out, list[FinishedShard]()
    previous = next((index for index in find_indexes(out) if index.is_intact()), None)
    if previous and not written and _is_current(previous, state, manifest_sha256):
        _write_tables(out, list(state.finished.values()))
        return previous.totals
    try:
        with scratch_folder(out) as scratch, contextlib.closing(IndexWriter(out, scratch, previous)) as writer:
            for plan, records in zip(state.plans, read_each(state.plans), strict=True):
                shard = _current(plan, state, written, log)
                shards.append(shard)
                writer.add_rows(records)
                first, end = plan.rows.start, plan.rows.stop
                writer.add_shard(
                    ShardEntry(**vars(shard.written), first_row=first, end_row=end, rows_hash=plan.rows_hash)
                )
            _write_tables(out, shards)
            return writer.save(state.job.described, state.job.config_hash, manifest_sha256)
    except OSError as error:
        raise run_error(error, str(out)) from None


def _is_current(index: ShardIndex, state: OutputState, manifest_sha256: str) -> bool:
    """Return whether an index is that of the finished shards and of the manifest, and in its place."""
    if index.name != schema.INDEX_NAME or index.config_hash != state.job.config_hash:
        return False
    checksums = [shard.written.sha256.encode() for shard in state.finished.values()]  # in the order of the plans
    same = len(checksums) == len(state.plans) and index.column(SHARD_SHA256).tolist() == checksums
    return same and index.head.get("manifest_sha256") == manifest_sha256


def remove_index(out: Path) -> None:
    """Remove ``index.json`` of an output folder, if any, before a file that it describes is replaced.

    A run that is then killed leaves an unfinished extraction instead of an index that does not match its shards. Until
    the next index is written, the old one stays under another name: ``cmd-extract verify --repair`` continues with its
    checksums.
    """
    try:
        (out / schema.INDEX_NAME).replace(out / schema.PREVIOUS_INDEX_NAME)
    except FileNotFoundError:  # not finished yet, or removed by another worker
        return
    sync(out)


def _current(plan: ShardPlan, state: OutputState, written: Mapping[str, FinishedShard], log: ShardLog) -> FinishedShard:
    """Return a shard as it is now: as known before, or read again if it has changed since."""
    shard = written.get(plan.name) or state.finished.get(plan.name)
    if shard is None or shard.stamp != file_stamp(str(state.job.out), plan.name):
        shard = read_finished(plan, state.job)
        if shard is not None:
            log.add(shard)
    if shard is None:
        raise ShardError(
            f"{state.job.out / plan.name}: removed during the run, or replaced by a run with other settings; run the "
            "same command again"
        )
    return shard


def _write_tables(out: Path, shards: Sequence[FinishedShard]) -> None:
    write_failures(out, [row for shard in shards for row in shard.failures])
    _write_table(out / schema.DAMAGED_NAME, _DAMAGED_COLUMNS, [row for shard in shards for row in shard.damaged])
    if notes := [row for shard in shards for row in shard.notes]:
        _write_table(out / schema.NOTES_NAME, _NOTES_COLUMNS, notes)
    else:
        (out / schema.NOTES_NAME).unlink(missing_ok=True)


def write_failures(out: Path, failures: Iterable[FailedRow]) -> None:
    """Write ``failures.csv`` of an output folder."""
    _write_table(out / schema.FAILURES_NAME, FailedRow._fields, failures)


def _write_table(path: Path, columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    write_atomically(path, csv_bytes([columns, *rows]))
