"""Retrieval while training goes on: how often a video's nearest neighbour has its label.

The network is only looked at: evaluation mode, no gradients, no draw from a generator that training uses.

Shape legend: V videos of this rank, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cmd_extract.schema import VideoEntry
from cmd_train.augment.apply import center_crop
from cmd_train.config import TrainConfig
from cmd_train.data.batch import EvalSample
from cmd_train.data.dataset import DamagedSampleError, EvalDataset, VideoSource
from cmd_train.distributed.gather import gather, sizes_of_ranks
from cmd_train.distributed.process_group import Placement, ignore_signals
from cmd_train.models.backbones import Backbone
from cmd_train.monitoring.neighbours import leave_one_out_recall

CLIPS = 2
RANKS = (1, 5)


class _Readable(Dataset[EvalSample | None]):
    """None where a video is damaged; training counts those."""

    def __init__(self, dataset: EvalDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, video: int) -> EvalSample | None:
        try:
            return self._dataset[video]
        except DamagedSampleError:
            return None


class RetrievalMonitor:
    """Leave-one-out retrieval among the labelled videos that are trained on; ranks share the work.

    Args:
        shards, entries: the videos.
        config: of the training.
        placement: this process among all.
    """

    def __init__(
        self, shards: VideoSource, entries: Sequence[VideoEntry], config: TrainConfig, placement: Placement
    ) -> None:
        self._labelled = [entry for entry in entries if entry.label]
        self._shards, self._config, self._placement = shards, config, placement

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """``retrieval_r1`` and ``retrieval_r5``; all ranks must call this together.

        Args:
            model: has a ``backbone``; left in training mode.
        """
        device, world = self._placement.device, self._placement.world_size
        own = list(range(self._placement.rank, len(self._labelled), world))
        if world > 1:
            # Without SyncBatchNorm each rank has statistics of its own; the next step takes rank 0's as well.
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)
        model.eval()
        try:
            features_VF, found = self._embed(cast(Backbone, model.backbone), own)
        finally:
            model.train()
        sizes = sizes_of_ranks(len(found), device)
        features = gather(features_VF, sizes).cpu()
        numbers = gather(torch.tensor(found, dtype=torch.int64, device=device), sizes).tolist()
        # In the order of videos, whatever the number of ranks: equals are listed by row.
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        labels = [self._labelled[numbers[row]].label for row in order]
        recall = leave_one_out_recall(features[order], labels, RANKS)
        return {f"retrieval_r{k}": value for k, value in recall.items()}

    @torch.no_grad()
    def _embed(self, backbone: Backbone, own: Sequence[int]) -> tuple[Tensor, list[int]]:
        """(V, F) features of those of the rank's videos that can be read, and their numbers."""
        entries = [self._labelled[number] for number in own]
        channels = backbone.feature_channels
        features, found = [torch.empty(0, channels, device=self._placement.device)], []
        if entries:
            loader = DataLoader(
                _Readable(EvalDataset(self._shards, entries, self._config.sampling, CLIPS)),
                batch_size=None,
                num_workers=self._config.data.workers,
                collate_fn=_as_it_is,  # type: ignore[arg-type] # without batches it gets one sample
                worker_init_fn=ignore_signals,
            )
            for number, sample in zip(own, loader, strict=True):
                if sample is not None:
                    clips = torch.as_tensor(sample.clips_u8).to(self._placement.device)
                    pooled = backbone(center_crop(clips, self._config.model.crop_size)).pooled_BC
                    features.append(pooled.float().mean(0, keepdim=True))
                    found.append(number)
        return torch.cat(features), found


def _as_it_is(sample: EvalSample | None) -> EvalSample | None:
    return sample
