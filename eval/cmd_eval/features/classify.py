"""Classifies videos: evenly spaced clips, centre crop, softmax averaged over clips (the paper's protocol).

Shape legend: V videos, N clips of each, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from cmd_extract.schema import VideoEntry
from cmd_extract.shard.reader import ShardSet
from cmd_train.augment.apply import center_crop
from cmd_train.data.batch import collate_eval
from cmd_train.data.dataset import EvalDataset
from cmd_train.data.sampling import SamplingConfig
from cmd_train.models.supervised import SupervisedModel

_CLIPS_AT_ONCE = 16


@torch.inference_mode()
def classify_videos(
    model: SupervisedModel,
    shards: ShardSet,
    entries: Sequence[VideoEntry],
    *,
    sampling: SamplingConfig,
    crop_size: int,
    clips: int,
    device: torch.device,
    workers: int,
    progress: Callable[[int, int], None],
) -> NDArray[np.float64]:
    """Probabilities of the classes.

    Args:
        model: in whatever mode; evaluation mode is set.
        shards: where the frames lie.
        entries: the V videos.
        sampling: clip length and stride.
        crop_size: side of the input in pixels.
        clips: N clips a video, at equal spacing.
        device: where to compute.
        workers: decoding processes; 0 decodes in this one.
        progress: called with (videos done, all videos).

    Returns:
        (V, K) float64: the mean over clips of the softmax.
    """
    model.to(device).eval()
    dataset = EvalDataset(shards, entries, sampling, clips)
    loader = DataLoader(dataset, batch_size=1, num_workers=workers, collate_fn=collate_eval)
    probabilities = []
    for batch in loader:
        clips_u8 = batch.clips_u8_BNTHWC.to(device).flatten(0, 1)
        logits = [model(center_crop(part, crop_size)).logits_BK for part in torch.split(clips_u8, _CLIPS_AT_ONCE)]
        probabilities.append(torch.cat(logits).double().softmax(dim=1).mean(dim=0).cpu().numpy())
        progress(len(probabilities), len(entries))
    return np.stack(probabilities)
