"""Embeds videos: evenly spaced clips, centre crop, the backbone's pooled feature, averaged over clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from extract.schema import VideoEntry
from extract.shard_reader import ShardSet
from train.augment import center_crop
from train.backbones import Backbone
from train.batch import collate_eval
from train.dataset import EvalDataset
from train.sampling import SamplingConfig

_CLIPS_AT_ONCE = 16


@torch.inference_mode()
def embed_videos(
    backbone: Backbone,
    shards: ShardSet,
    entries: Sequence[VideoEntry],
    *,
    sampling: SamplingConfig,
    crop_size: int,
    clips: int,
    device: torch.device,
    workers: int,
    progress: Callable[[int, int], None],
) -> Tensor:
    """Features of whole videos.

    Args:
        backbone: in whatever mode; evaluation mode is set.
        shards: where the frames lie.
        entries: the V videos.
        sampling: clip length and stride.
        crop_size: side of the input in pixels.
        clips: clips a video, at equal spacing.
        device: where to compute.
        workers: decoding processes; 0 decodes in this one.
        progress: called with (videos done, all videos).

    Returns:
        (V, F) float32 on the CPU: the mean over clips of the pooled feature.
    """
    backbone.to(device).eval()
    dataset = EvalDataset(shards, entries, sampling, clips)
    loader = DataLoader(dataset, batch_size=1, num_workers=workers, collate_fn=collate_eval)
    features = []
    for batch in loader:
        clips_u8 = batch.clips_u8_BNTHWC.to(device).flatten(0, 1)
        parts = [backbone(center_crop(part, crop_size)).pooled_BC for part in torch.split(clips_u8, _CLIPS_AT_ONCE)]
        features.append(torch.cat(parts).float().mean(dim=0).cpu())
        progress(len(features), len(entries))
    return torch.stack(features)
