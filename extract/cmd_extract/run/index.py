"""``index.json``, ``failures.csv`` and ``damaged.csv``: what an output folder contains, written when it is complete."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmd_extract import schema
from cmd_extract.errors import ShardError
from cmd_extract.run.state import OutputState, read_finished
from cmd_extract.schema import DamagedRow, FailedRow, columns_of, hash_json
from cmd_extract.shard.writer import WrittenShard
from cmd_extract.system.files import write_whole

_DAMAGED_COLUMNS = ("row", "id", "damage")
_TOTALS = ("videos", "frames", "failures", "damaged", "size_bytes")


def write_index(state: OutputState, written: Mapping[str, WrittenShard]) -> dict[str, int]:
    """Write ``index.json`` and both tables, in manifest order and without times.

    Args:
        state: the output folder before the run.
        written: shards written since, or known from logs, by name. Other shards are read for their checksums.

    Returns:
        Totals: videos, frames, failures, damaged, size_bytes.
    """
    shards, failures, damaged = [], list[FailedRow](), list[DamagedRow]()
    for plan in state.plans:
        entry = written.get(plan.name) or state.finished[plan.name].describe()
        if entry.failures or entry.damaged:
            shard = state.finished.get(plan.name) or read_finished(plan, state.job)
            if shard is None:
                raise ShardError(f"{state.job.out / plan.name}: disappeared during the run; run the same command again")
            failures += shard.failures
            damaged += shard.damaged
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
    save_index(out, index)
    return totals


def save_index(out: Path, index: Mapping[str, Any]) -> None:
    """Write ``index.json`` of an output folder atomically, each of its manifest columns on one line."""
    head = json.dumps({key: value for key, value in index.items() if key != "columns"}, indent=1)
    columns = ",\n".join(f"  {json.dumps(name)}: {json.dumps(cells)}" for name, cells in index["columns"].items())
    text = head.removesuffix("\n}") + f',\n "columns": {{\n{columns}\n }}\n}}\n'
    write_whole(out / schema.INDEX_NAME, lambda temporary: temporary.write_text(text, "utf-8"))


def write_failures(out: Path, failures: Iterable[FailedRow]) -> None:
    """Write ``failures.csv`` of an output folder."""
    _write_table(out / schema.FAILURES_NAME, FailedRow._fields, failures)


def _write_table(path: Path, columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)

    write_whole(path, write)
