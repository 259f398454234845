from __future__ import annotations

import pytest

from cmd_extract.manifest.rows import ListedRows
from cmd_extract.run.division import automatic_videos_per_shard, plan_shards
from cmd_extract.run.plan import ShardLimits
from cmd_extract.schema import VideoRecord


def records(count: int) -> list[VideoRecord]:
    return [VideoRecord(row=i, video_id=str(i), path=str(i)) for i in range(count)]


@pytest.mark.parametrize("count", [1, 7, 32, 33, 237, 9000])
def test_plan_covers_every_row_once_in_order(count: int) -> None:
    plans = plan_shards(ListedRows(records(count))).plans
    assert [r.row for p in plans for r in p.read_records()] == list(range(count))
    assert max(len(p.rows) for p in plans) == min(automatic_videos_per_shard(count), count) <= 256
    assert [p.number for p in plans] == list(range(len(plans)))


@pytest.mark.parametrize(("videos", "per_shard"), [(1, 1), (32, 1), (33, 2), (237, 8), (9000, 256)])
def test_automatic_size_of_shards(videos: int, per_shard: int) -> None:
    assert automatic_videos_per_shard(videos) == per_shard


def test_empty_shards_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"videos_per_shard: .*0"):
        plan_shards(ListedRows(records(3)), limits=ShardLimits(0))
