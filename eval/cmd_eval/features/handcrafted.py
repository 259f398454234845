"""Features of whole videos that nothing was trained for: a descriptor of each, put together.

Shape legend: V videos, F values of a descriptor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from cmd_eval.data.table import VideoTable
from cmd_eval.features.store import Features
from cmd_eval.results.schema import Provenance
from cmd_extract.shard.reader import ShardSet


def hand_made_features(
    name: str,
    described: Iterable[NDArray[np.float64]],
    shards: ShardSet,
    command: str,
    progress: Callable[[int, int], None],
) -> Features:
    """Features of all videos of a shard set, of one clip each, which is the whole video.

    Args:
        name: what the features are; recorded.
        described: (F,) values of each video, in the order of ``shards.videos``; taken one by one.
        shards: the videos.
        command: recorded as what made them.
        progress: called with (videos done, all videos).
    """
    rows = []
    for values in described:
        rows.append(values)
        progress(len(rows), len(shards.videos))
    mean_VF = np.stack(rows).astype(np.float32)
    return Features(
        videos=VideoTable.of(shards.videos),
        mean_VF=mean_VF,
        clips_VNF=mean_VF[:, None],
        provenance=Provenance(
            command=command,
            shards=str(shards.folder.resolve()),
            data_hash=shards.data_hash,
            features=name,
            clips=1,
        ),
    )
