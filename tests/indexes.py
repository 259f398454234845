"""Indexes of output folders that tests have changed or made themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from cmd_extract.run.index_table import IndexWriter
from cmd_extract.schema import VideoRecord
from cmd_extract.shard.index import ShardEntry, ShardIndex
from cmd_extract.shard.reader import ShardReader
from cmd_extract.sources.access import fingerprint
from cmd_extract.system.files import scratch_folder


def write_index(out: Path, shards: Sequence[ShardEntry], cells: Mapping[str, Sequence[str]]) -> None:
    """Write the index of some shards; ``cells`` are the labels, groups and splits of all rows."""
    reader = ShardReader(out / shards[0].name)
    config, config_hash = dict(reader.header.config), reader.header.config_hash
    reader.close()
    splits = [name for name in cells if name not in ("label", "group")]
    with scratch_folder(out) as scratch, contextlib.closing(IndexWriter(out, scratch)) as writer:
        for shard in shards:
            writer.add_rows([
                VideoRecord(
                    row=row,
                    video_id="v",
                    path="v",
                    label=cells["label"][row],
                    group=cells["group"][row],
                    splits={name: cells[name][row] for name in splits},
                )
                for row in range(shard.first_row, shard.end_row)
            ])  # fmt: skip
            writer.add_shard(shard)
        writer.save(config, config_hash, "")


def cells_of(index: ShardIndex) -> dict[str, list[str]]:
    return {name: list(index.cells(name)) for name in ("label", "group", *index.split_columns)}


def update_index(out: Path, count: int | None = None, **changed: Sequence[str]) -> None:
    """Index shards again as they are now, or only the first ``count``, perhaps with other labels or groups."""
    index = ShardIndex(out)
    shards = [
        shard._replace(sha256=fingerprint(out / shard.name), size_bytes=(out / shard.name).stat().st_size)
        for shard in index.shards()
    ]
    write_index(out, shards[:count], cells_of(index) | changed)
