"""Division of a manifest into shards of consecutive rows, independent of workers and machines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from cmd_extract.schema import SHARD_PATTERN, VideoRecord, hash_prefixes, hash_records

MAX_VIDEOS_PER_SHARD = 256
_TARGET_SHARDS = 32


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """The manifest rows of one shard.

    Attributes:
        number: index of the shard.
        records: consecutive manifest rows.
    """

    number: int
    records: tuple[VideoRecord, ...]

    @property
    def name(self) -> str:
        """File name of the shard."""
        return SHARD_PATTERN.format(self.number)

    @cached_property
    def rows_hash(self) -> str:
        """Hash of the rows without labels, groups and splits; a shard of other rows is never mistaken for this one."""
        return hash_records(self.records)


def automatic_videos_per_shard(rows: int) -> int:
    """Return the default shard size: about 32 shards, so that many workers can share the work; at most 256 videos."""
    return min(MAX_VIDEOS_PER_SHARD, max(1, -(-rows // _TARGET_SHARDS)))


class ManifestPart(NamedTuple):
    """Consecutive manifest rows that were added to an extraction at the same time; no shard has rows of two parts.

    Attributes:
        rows: number of rows.
        videos_per_shard: rows per shard.
        manifest_hash: hash of all manifest rows up to the end of the part, see ``schema.hash_records``.
    """

    rows: int
    videos_per_shard: int
    manifest_hash: str


def plan_parts(
    records: Sequence[VideoRecord], recorded: Sequence[ManifestPart] = (), videos_per_shard: int | None = None
) -> tuple[ManifestPart, ...]:
    """Divide a manifest into the rows that an extraction has already and a part of new rows, if any.

    Args:
        records: all rows.
        recorded: the parts of the extraction so far.
        videos_per_shard: rows per shard of the new part; None for ``automatic_videos_per_shard``. If there are no new
            rows, that of the last part.

    Returns:
        The recorded parts, and a new one. If the manifest does not start with the recorded rows, one part of all rows.

    Raises:
        ValueError: ``videos_per_shard`` is not positive.
    """
    if videos_per_shard is not None and videos_per_shard < 1:
        raise ValueError(f"videos_per_shard: must be at least 1, got {videos_per_shard}")
    ends = list(itertools.accumulate(part.rows for part in recorded))
    known = ends[-1] if ends else 0
    *hashes, manifest_hash = hash_prefixes(records, [*ends, len(records)] if known <= len(records) else [len(records)])
    if hashes != [part.manifest_hash for part in recorded]:
        known, recorded = 0, ()
    if new := len(records) - known:
        size = automatic_videos_per_shard(new) if videos_per_shard is None else videos_per_shard
        return (*recorded, ManifestPart(new, size, manifest_hash))
    last = recorded[-1]
    return (*recorded[:-1], last._replace(videos_per_shard=videos_per_shard or last.videos_per_shard))


def divide(records: Sequence[VideoRecord], parts: Sequence[ManifestPart]) -> tuple[ShardPlan, ...]:
    """Divide the rows of each part into shards."""
    plans: list[ShardPlan] = []
    end = 0
    for part in parts:
        start, end = end, end + part.rows
        for first in range(start, end, part.videos_per_shard):
            rows = tuple(records[first : min(first + part.videos_per_shard, end)])
            plans.append(ShardPlan(number=len(plans), records=rows))
    return tuple(plans)


def plan_shards(records: Sequence[VideoRecord], videos_per_shard: int | None = None) -> tuple[ShardPlan, ...]:
    """Divide the manifest rows of a new extraction into shards.

    Args:
        records: all rows.
        videos_per_shard: rows per shard; None for ``automatic_videos_per_shard``.

    Raises:
        ValueError: ``videos_per_shard`` is not positive.
    """
    return divide(records, plan_parts(records, videos_per_shard=videos_per_shard))


def count_rows(plans: Sequence[ShardPlan]) -> int:
    """Return the number of manifest rows of some shards."""
    return sum(len(plan.records) for plan in plans)


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of one task of an extraction; a run on a single machine is task 0 of 1.

    Attributes:
        task: task index, 0-based.
        num_tasks: total number of tasks.
    """

    task: int
    num_tasks: int

    def __post_init__(self) -> None:
        if self.num_tasks < 1:
            raise ValueError(f"num_tasks: must be at least 1, got {self.num_tasks}")
        if not 0 <= self.task < self.num_tasks:
            raise ValueError(f"task: must be between 0 and {self.num_tasks - 1} (num_tasks - 1), got {self.task}")

    def __str__(self) -> str:
        return f"task {self.task} of {self.num_tasks}"

    def of(self, plans: Sequence[ShardPlan]) -> tuple[ShardPlan, ...]:
        """Return the task's shards. Every shard belongs to exactly one task."""
        return tuple(plans[self.task :: self.num_tasks])

    def shard_numbers(self, total: int) -> range:
        """Return the numbers of the task's shards, out of ``total`` shards."""
        return range(self.task, total, self.num_tasks)
