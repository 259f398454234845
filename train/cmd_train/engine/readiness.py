"""What can be told to be wrong before the first step."""

from __future__ import annotations

from collections.abc import Sequence

from cmd_extract.schema import VideoEntry
from cmd_train.config import TrainConfig
from cmd_train.distributed.process_group import Placement, from_all_ranks


def check_before_start(
    config: TrainConfig, entries: Sequence[VideoEntry], data_hash: str, placement: Placement
) -> None:
    """Refuses what would fail, or teach nothing, later; all ranks must call this together.

    Args:
        config: the settings.
        entries: the videos to train on.
        data_hash: identifies the shards that this rank reads.
        placement: this process among all.

    Raises:
        ValueError: there is a single video, so that no clip has a negative; a rank's part of a batch is too small
            for BatchNorm; ``run.knn_epochs`` without two labels; ranks read different shards.
    """
    if len(entries) < 2:
        raise ValueError(
            f"entries: the only video is {entries[0].video_id}; a clip has no negatives then, need at least 2 videos"
        )
    batch, parts = config.optim.batch_size, config.optim.accumulate
    shares = placement.world_size * parts
    if batch % shares or batch // shares < 2:
        raise ValueError(
            f"optim.batch_size: {batch} in {parts} parts (optim.accumulate) on {placement.world_size} ranks is not "
            f"allowed, need a multiple of {shares}, and at least {2 * shares}: a part of one clip has no negatives"
        )
    if config.run.knn_epochs and len({entry.label for entry in entries} - {""}) < 2:
        raise ValueError("run.knn_epochs: need at least 2 labels among the videos, or 0")
    hashes = from_all_ranks(data_hash, placement)
    others = [rank for rank, other in enumerate(hashes) if other != hashes[0]]
    if others:
        raise ValueError(f"shards: ranks {', '.join(map(str, others))} read other shards than rank 0")
