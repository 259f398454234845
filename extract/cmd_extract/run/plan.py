"""Division of a manifest into shards of consecutive rows, independent of workers and machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cmd_extract.schema import SHARD_PATTERN, VideoRecord, hash_records

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


def plan_shards(records: Sequence[VideoRecord], videos_per_shard: int | None = None) -> tuple[ShardPlan, ...]:
    """Divide manifest rows into shards.

    Args:
        records: all rows.
        videos_per_shard: rows per shard; None for ``automatic_videos_per_shard``.

    Raises:
        ValueError: ``videos_per_shard`` is not positive.
    """
    size = automatic_videos_per_shard(len(records)) if videos_per_shard is None else videos_per_shard
    if size < 1:
        raise ValueError(f"videos_per_shard: must be at least 1, got {size}")
    starts = range(0, len(records), size)
    return tuple(ShardPlan(number=i, records=tuple(records[s : s + size])) for i, s in enumerate(starts))


def count_rows(plans: Sequence[ShardPlan]) -> int:
    """Return the number of manifest rows of some shards."""
    return sum(len(plan.records) for plan in plans)
