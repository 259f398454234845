"""Label retrieval during training: how often the nearest neighbors of a video have its label.

Does not affect training: evaluation mode, no gradients, no use of the random generators of training.

Shape legend: V videos of this rank, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from cmd_extract.shard.videos import Videos
from cmd_train.augment.apply import center_crop
from cmd_train.config import TrainConfig
from cmd_train.data.batch import EvalSample
from cmd_train.data.dataset import DamagedSampleError, EvalDataset, VideoSource
from cmd_train.data.loading import iterate_samples
from cmd_train.distributed.gather import gather
from cmd_train.distributed.process_group import RankContext
from cmd_train.models.backbones import Backbone
from cmd_train.monitoring.neighbors import leave_one_out_recall

CLIPS = 2
RECALL_AT = (1, 5)


class _SkipDamaged(Dataset[EvalSample | None]):
    """Yields None for damaged videos, which training reports."""

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
    """Leave-one-out retrieval among the labeled training videos, distributed over ranks.

    Args:
        shards, entries: the shards and their training videos.
        config: configuration of the run.
        context: this process among all.
    """

    def __init__(self, shards: VideoSource, entries: Videos, config: TrainConfig, context: RankContext) -> None:
        labels = entries.names("label").texts()
        self._labels = [label for label in labels if label]
        self._labeled = entries.select([row for row, label in enumerate(labels) if label])
        self._shards, self._config, self._context = shards, config, context

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return ``retrieval_r1`` and ``retrieval_r5``; a collective operation.

        Args:
            model: network with a ``backbone``; left in training mode.
        """
        device, world = self._context.device, self._context.world_size
        own = list(range(self._context.rank, len(self._labeled), world))
        if world > 1:
            # Without SyncBatchNorm the statistics differ between ranks; the next step uses those of rank 0, too.
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)
        model.eval()
        try:
            features_VF, found = self._embed(cast(Backbone, model.backbone), own)
        finally:
            model.train()
        # All ranks send the same number of rows; -1 marks those without a video.
        missing = -(-len(self._labeled) // world) - len(found)
        features = gather(torch.cat([features_VF, features_VF.new_zeros(missing, features_VF.shape[1])])).cpu()
        numbers = gather(torch.tensor(found + [-1] * missing, device=device)).tolist()
        # Restore the order of videos: ties are ordered by row, and must not depend on the number of ranks.
        order = sorted((row for row, number in enumerate(numbers) if number >= 0), key=numbers.__getitem__)
        labels = [self._labels[numbers[row]] for row in order]
        recall = leave_one_out_recall(features[order], labels, RECALL_AT)
        return {f"retrieval_r{k}": value for k, value in recall.items()}

    @torch.no_grad()
    def _embed(self, backbone: Backbone, own: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Return the (V, F) features of this rank's readable videos, and their numbers."""
        entries = self._labeled.select(own)
        channels = backbone.feature_channels
        features, found = [torch.empty(0, channels, device=self._context.device)], []
        if entries:
            samples = iterate_samples(
                _SkipDamaged(EvalDataset(self._shards, entries, self._config.sampling, CLIPS)),
                workers=self._config.data.workers,
                timeout_seconds=self._config.data.timeout_seconds,
            )
            for number, sample in zip(own, samples, strict=True):
                if sample is not None:
                    clips = torch.as_tensor(sample.clips_u8).to(self._context.device)
                    pooled = backbone(center_crop(clips, self._config.model.crop_size)).pooled_BC
                    features.append(pooled.float().mean(0, keepdim=True))
                    found.append(number)
        return torch.cat(features), found
