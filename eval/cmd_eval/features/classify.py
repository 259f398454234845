"""Class probabilities of whole videos: softmax averaged over clips (the paper's protocol).

Shape legend: V videos, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cmd_eval.features.clips import ClipProtocol, run_on_clips
from cmd_extract.shard.reader import ShardSet
from cmd_extract.shard.videos import Videos
from cmd_train.models.supervised import SupervisedModel


def classify_videos(
    model: SupervisedModel,
    shards: ShardSet,
    entries: Videos,
    protocol: ClipProtocol,
    progress: Callable[[int, int], None],
) -> NDArray[np.float64]:
    """Compute class probabilities.

    Args:
        model: the classifier.
        shards: the shards that contain the videos.
        entries: the V videos.
        protocol: clips, crop and device.
        progress: called with (videos done, total videos).

    Returns:
        (V, K) float64: the softmax averaged over clips.
    """
    probabilities = []
    for _, logits_NK in run_on_clips(model, lambda clips: model(clips).logits_BK, shards, entries, protocol):
        probabilities.append(logits_NK.double().softmax(dim=1).mean(dim=0).numpy())
        progress(len(probabilities), len(entries))
    return np.stack(probabilities)
