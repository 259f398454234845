"""Run a network on whole videos: evenly spaced clips of each video, cropped at the center (the paper's protocol).

Shape legend: V videos, N clips of each, F values per clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmd_extract.schema import VideoEntry
from cmd_extract.shard.reader import ShardSet
from cmd_train.augment.apply import center_crop
from cmd_train.config import DataConfig, TrainConfig
from cmd_train.data.batch import EvalBatch, EvalSample, collate_eval
from cmd_train.data.dataset import EvalDataset
from cmd_train.data.loading import iterate_samples
from cmd_train.data.sampling import SamplingConfig

_CLIPS_PER_FORWARD = 16


@dataclass(frozen=True, kw_only=True)
class ClipProtocol:
    """How a network sees a video.

    Attributes:
        sampling: clip length and stride.
        crop_size: side of the input in pixels.
        clips: number N of evenly spaced clips per video.
        device: device to compute on.
        workers: number of decoding processes; 0 decodes in this process.
    """

    sampling: SamplingConfig
    crop_size: int
    clips: int
    device: torch.device
    workers: int = 0

    @classmethod
    def of(cls, config: TrainConfig, *, clips: int, device: torch.device, workers: int = 0) -> ClipProtocol:
        """Return the protocol that matches a training configuration."""
        return cls(
            sampling=config.sampling, crop_size=config.model.crop_size, clips=clips, device=device, workers=workers
        )


def run_on_clips(
    network: nn.Module,
    forward: Callable[[Tensor], Tensor],
    shards: ShardSet,
    entries: Sequence[VideoEntry],
    protocol: ClipProtocol,
) -> Iterator[tuple[VideoEntry, Tensor]]:
    """Yield each video with the network's output for its clips, (N, F).

    The output for a video does not depend on the other videos.

    Args:
        network: moved to the device and set to evaluation mode.
        forward: calls the network with cropped clips (B, T, H, W, C) and returns (B, F).
        shards: the shards that contain the videos.
        entries: the videos.
        protocol: clips, crop and device.
    """
    network.to(protocol.device).eval()
    dataset = EvalDataset(shards, entries, protocol.sampling, protocol.clips)
    batches = iterate_samples(
        dataset, workers=protocol.workers, timeout_seconds=DataConfig.timeout_seconds, collate=_batch_of_one
    )
    for entry, batch in zip(entries, batches, strict=True):
        with torch.inference_mode():
            clips_u8 = batch.clips_u8_BNTHWC.to(protocol.device).flatten(0, 1)
            parts = torch.split(clips_u8, _CLIPS_PER_FORWARD)
            output_NF = torch.cat([forward(center_crop(part, protocol.crop_size)) for part in parts])
        yield entry, output_NF


def _batch_of_one(sample: EvalSample) -> EvalBatch:
    return collate_eval([sample])
