"""Replacement of the labels, groups and splits of a finished extraction, without extracting again.

They are stored in the table of the index only. Replacing ``index.json``, which names it, changes all of them at once or
none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmd_extract import schema
from cmd_extract.errors import ShardError, run_error
from cmd_extract.manifest.records import read_manifest
from cmd_extract.manifest.rows import ListedRows
from cmd_extract.run.division import divide
from cmd_extract.run.index_table import IndexWriter
from cmd_extract.run.plan import ShardPlan
from cmd_extract.run.record import read_record
from cmd_extract.schema import VideoRecord
from cmd_extract.shard.index import ShardIndex, cell_of, find_indexes
from cmd_extract.shard.reader import ShardReader
from cmd_extract.sources.access import fingerprint
from cmd_extract.system.files import scratch_folder, write_atomically

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
    index = ShardIndex(out)
    if record is None:
        raise ShardError(f"{out}: no {schema.RUN_NAME} found; pass the output folder of `cmd-extract run`")
    if not index.is_intact():
        raise ShardError(f"{index.table_path}: damaged; run `cmd-extract merge {out}` to rebuild it first")
    sha256, records = fingerprint(manifest), read_manifest(manifest, check_paths=False)
    if len(records) != record.identity.manifest_rows:
        raise ShardError(
            f"{manifest}: has {len(records)} rows, but {out} was extracted from {record.identity.manifest_rows}; "
            f"{_ROWS_MUST_MATCH}. To leave a video out, empty its split cells"
        )
    plans = divide(ListedRows(records), record.identity.parts).plans
    _check_shards(out, index, plans, manifest)
    before = {"label", "group", *index.split_columns}
    after = {"label", "group", *(name for r in records for name in r.splits)}
    counts = {
        name: sum(cell != cell_of(name, r) for cell, r in zip(index.cells(name), records, strict=True))
        for name in sorted(before & after, key=_column_order)
    }
    _replace_index(index, plans, sha256)
    _record_manifest(out, manifest)
    return Relabeling(
        rows=len(records),
        changed={name: count for name, count in counts.items() if count},
        added=sorted(after - before),
        removed=sorted(before - after),
    )


def _column_order(name: str) -> tuple[bool, bool, str]:
    return name != "label", name != "group", name


def _replace_index(index: ShardIndex, plans: Sequence[ShardPlan], manifest_sha256: str) -> None:
    out = index.folder
    try:
        with scratch_folder(out) as scratch, contextlib.closing(IndexWriter(out, scratch, index)) as writer:
            for plan, shard in zip(plans, index.shards(), strict=True):
                writer.add_rows(plan.read_records())
                writer.add_shard(shard)
            # A retry or repair removes the index before it replaces shards; its index must not be overwritten by an
            # older one.
            writer.save(index.head["config"], index.config_hash, manifest_sha256, index.check_in_place)
    except OSError as error:
        raise run_error(error, str(out)) from None


def check_labels(out: Path, manifest: Path, records: Sequence[VideoRecord]) -> None:
    """Check that the labels, groups and splits of an extraction are those of its manifest, if it has an index.

    Raises:
        ShardError: they differ, so that writing the index would change them.
    """
    indexes = find_indexes(out)
    if indexes and not indexes[0].has_columns_of(records):
        raise ShardError(
            f"{manifest}: has changed since {out} was extracted (labels, groups or splits); run `cmd-extract relabel "
            f"{out} {manifest}` first, or pass the original manifest with --manifest"
        )


def _check_shards(out: Path, index: ShardIndex, plans: Sequence[ShardPlan], manifest: Path) -> None:
    """Check that the index describes the files of the folder, and that they were made from the rows of the manifest."""
    if len(plans) != len(index):
        raise ShardError(
            f"{out}: rows were added to the extraction, but {schema.INDEX_NAME} has only {len(index)} of "
            f"{len(plans)} shards; run `cmd-extract run` with the same manifest to complete it first"
        )
    for plan, entry in zip(plans, index.shards(), strict=True):
        path = out / entry.name
        if not path.is_file() or path.stat().st_size != entry.size_bytes:
            raise ShardError(
                f"{path}: missing, or its size does not match {schema.INDEX_NAME}; run `cmd-extract verify {out} "
                "--repair` first"
            )
        if plan.rows_hash != entry.rows_hash:
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
    write_atomically(path, text)
