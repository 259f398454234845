"""Replacement of the labels, groups and splits of a finished extraction, without extracting again.

They are stored in ``index.json`` only. Replacing that one file changes all of them at once or none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmd_extract import schema
from cmd_extract.errors import ShardError
from cmd_extract.manifest.records import read_manifest
from cmd_extract.manifest.rows import ListedRows
from cmd_extract.run.division import divide
from cmd_extract.run.index import save_index
from cmd_extract.run.plan import ShardPlan
from cmd_extract.run.record import read_record
from cmd_extract.schema import VideoRecord, columns_of
from cmd_extract.shard.reader import ShardReader, read_columns, read_index
from cmd_extract.system.files import write_whole

_ROWS_MUST_MATCH = "a manifest with other rows, ids or paths must be extracted into another folder"


@dataclass(frozen=True, kw_only=True)
class Relabeling:
    """What changed in the columns of an extraction.

    Attributes:
        rows: number of manifest rows.
        changed: number of changed cells of each column that both manifests have, if any.
        added, removed: names of new columns and of columns that the new manifest does not have.
    """

    rows: int
    changed: dict[str, int]
    added: list[str]
    removed: list[str]

    @property
    def text(self) -> str:
        """Human-readable description."""
        parts = [f"{name}: {count} of {self.rows} values changed" for name, count in self.changed.items()]
        parts += [f"{name}: added" for name in self.added] + [f"{name}: removed" for name in self.removed]
        return "; ".join(parts) or "labels, groups and splits are already those of the manifest"


def relabel(out: Path, manifest: Path) -> Relabeling:
    """Replace the labels, groups and splits of an extraction by those of a manifest with the same rows, ids and paths.

    Shards are not read or changed. ``run.json`` then names the new manifest.

    Args:
        out: output folder of a finished extraction.
        manifest: the new manifest.

    Raises:
        ManifestError: the manifest is invalid.
        ShardError: the extraction is not finished, its files do not match its index, or the manifest has other rows,
            ids or paths. Nothing is changed.
    """
    record = read_record(out)
    index = read_index(out)
    if record is None:
        raise ShardError(f"{out}: no {schema.RUN_NAME} found; pass the output folder of `cmd-extract run`")
    before = read_columns(out, index)
    records = read_manifest(manifest, check_paths=False)
    if len(records) != record.identity.manifest_rows:
        raise ShardError(
            f"{manifest}: has {len(records)} rows, but {out} was extracted from {record.identity.manifest_rows}; "
            f"{_ROWS_MUST_MATCH}. To leave a video out, empty its split cells"
        )
    _check_shards(out, index, divide(ListedRows(records), record.identity.parts).plans, manifest)
    after = columns_of(records)
    # A retry or repair removes the index before it replaces shards; its index must not be overwritten by an older one.
    if read_index(out) != index:
        raise ShardError(f"{out}: another process has just changed {schema.INDEX_NAME}; run the same command again")
    save_index(out, index | {"columns": after})
    _record_manifest(out, manifest)
    both = [name for name in after if name in before]
    counts = {name: sum(a != b for a, b in zip(before[name], after[name], strict=True)) for name in both}
    return Relabeling(
        rows=len(records),
        changed={name: count for name, count in counts.items() if count},
        added=[name for name in after if name not in before],
        removed=[name for name in before if name not in after],
    )


def check_labels(out: Path, manifest: Path, records: Sequence[VideoRecord]) -> None:
    """Check that the labels, groups and splits of an extraction are those of its manifest, if its index has any.

    Raises:
        ShardError: they differ, so that writing the index would change them.
    """
    try:
        columns = read_columns(out, read_index(out))
    except ShardError:
        return
    if columns != columns_of(records):
        raise ShardError(
            f"{manifest}: has changed since {out} was extracted (labels, groups or splits); run `cmd-extract relabel "
            f"{out} {manifest}` first, or pass the original manifest with --manifest"
        )


def _check_shards(out: Path, index: Mapping[str, Any], plans: Sequence[ShardPlan], manifest: Path) -> None:
    """Check that the index describes the files of the folder, and that they were made from the rows of the manifest."""
    if len(plans) != len(index["shards"]):
        raise ShardError(
            f"{out}: rows were added to the extraction, but {schema.INDEX_NAME} has only {len(index['shards'])} of "
            f"{len(plans)} shards; run `cmd-extract run` with the same manifest to complete it first"
        )
    for plan, entry in zip(plans, index["shards"], strict=True):
        path = out / entry["name"]
        if not path.is_file() or path.stat().st_size != entry["size_bytes"]:
            raise ShardError(
                f"{path}: missing, or its size does not match {schema.INDEX_NAME}; run `cmd-extract verify {out} "
                "--repair` first"
            )
        if plan.rows_hash != entry["rows_hash"]:
            raise ShardError(f"{manifest}: {_difference(path, plan.read_records())}; {_ROWS_MUST_MATCH}")


def _difference(path: Path, records: Sequence[VideoRecord]) -> str:
    """Describe the first difference between the rows of a shard and those of a manifest, which differ."""
    with contextlib.closing(ShardReader(path)) as reader:
        ids = reader.row_ids()
    for record in records:
        if record.video_id != ids.get(record.row):
            return (
                f"row {record.row} (counted from 0) has the id {record.video_id!r}, extracted was {ids[record.row]!r}"
            )
    first, last = records[0], records[-1]
    return (
        f"the ids of rows {first.row} to {last.row} (counted from 0) are those of the extraction, but the paths are "
        f"not, for example {first.path!r}"
    )


def _record_manifest(out: Path, manifest: Path) -> None:
    path = out / schema.RUN_NAME
    record = json.loads(path.read_text("utf-8")) | {"manifest": str(manifest.absolute())}
    text = json.dumps(record, indent=1) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, "utf-8"))
