"""``index.json``, ``failures.csv`` and ``damaged.csv``: what an output folder contains, written when it is complete."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmd_extract import schema
from cmd_extract.errors import ShardError
from cmd_extract.manifest.table import csv_bytes
from cmd_extract.run.plan import ShardPlan
from cmd_extract.run.state import FinishedShard, OutputState, read_finished
from cmd_extract.schema import DamagedRow, FailedRow, NoteRow, columns_of, hash_json
from cmd_extract.shard.writer import WrittenShard
from cmd_extract.system.files import sync, write_whole

_DAMAGED_COLUMNS = ("row", "id", "damage")
_NOTES_COLUMNS = ("row", "id", "note")
_TOTALS = ("videos", "frames", "failures", "damaged", "size_bytes")


def write_index(state: OutputState, written: Mapping[str, WrittenShard]) -> dict[str, int]:
    """Write ``index.json`` and all tables, in manifest order and without times.

    Args:
        state: the output folder before the run.
        written: shards written since, or known from logs, by name. Other shards are read for their checksums.

    Returns:
        Totals: videos, frames, failures, damaged, size_bytes.

    Raises:
        ShardError: a shard was removed, or replaced by one of another configuration or of other rows.
    """
    shards, failures, damaged, notes = [], list[FailedRow](), list[DamagedRow](), list[NoteRow]()
    for plan in state.plans:
        shard = _read_current(plan, state)
        entry = written.get(plan.name) or shard.describe()
        failures += shard.failures
        damaged += shard.damaged
        notes += shard.notes
        rows = [plan.records[0].row, plan.records[-1].row + 1]
        shards.append(asdict(entry) | {"rows": rows, "rows_hash": plan.rows_hash})
    totals = {key: sum(s[key] for s in shards) for key in _TOTALS}
    described = state.job.described
    index = {
        "format": schema.FORMAT_NAME,
        "version": schema.FORMAT_VERSION,
        "config": described,
        "config_hash": hash_json(described),
        "totals": totals,
        "shards": shards,
        "columns": columns_of([record for plan in state.plans for record in plan.records]),
    }
    out = state.job.out
    write_failures(out, failures)
    _write_table(out / schema.DAMAGED_NAME, _DAMAGED_COLUMNS, damaged)
    if notes:
        _write_table(out / schema.NOTES_NAME, _NOTES_COLUMNS, notes)
    else:
        (out / schema.NOTES_NAME).unlink(missing_ok=True)
    save_index(out, index)
    (out / schema.PREVIOUS_INDEX_NAME).unlink(missing_ok=True)
    return totals


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


def save_index(out: Path, index: Mapping[str, Any]) -> None:
    """Write ``index.json`` of an output folder atomically, each of its manifest columns on one line."""
    head = json.dumps({key: value for key, value in index.items() if key != "columns"}, indent=1)
    columns = ",\n".join(f"  {json.dumps(name)}: {json.dumps(cells)}" for name, cells in index["columns"].items())
    text = head.removesuffix("\n}") + f',\n "columns": {{\n{columns}\n }}\n}}\n'
    write_whole(out / schema.INDEX_NAME, lambda temporary: temporary.write_text(text, "utf-8"))


def _read_current(plan: ShardPlan, state: OutputState) -> FinishedShard:
    """Return a shard as it is now: as read before, or read again if it is new or has changed since."""
    shard = state.finished.get(plan.name)
    if shard is None or shard.has_changed():
        shard = read_finished(plan, state.job)
    if shard is None:
        raise ShardError(
            f"{state.job.out / plan.name}: removed during the run, or replaced by a run with other settings; run the "
            "same command again"
        )
    return shard


def write_failures(out: Path, failures: Iterable[FailedRow]) -> None:
    """Write ``failures.csv`` of an output folder."""
    _write_table(out / schema.FAILURES_NAME, FailedRow._fields, failures)


def _write_table(path: Path, columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    data = csv_bytes([columns, *rows])
    write_whole(path, lambda temporary: temporary.write_bytes(data))
