"""Queue of keys of earlier batches, additional negatives of context matching for small batches.

Keys of the current batch come from the trained encoder, with gradient, as without a queue. Queued keys come from a
moving average of that encoder (momentum contrast; He et al., 2020), so that keys from many steps ago remain
comparable. Motion prediction needs no queue: a batch of 8 already has 8 x 4 x 49 = 1568 motion keys.

Shape legend:
    B  samples of this rank's batch
    M  keys in the queue
    D  features of an embedding
"""

# ruff: noqa: N815 (buffer names carry the shapes of their tensors)

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cmd_train.distributed.gather import gather, sizes_of_ranks
from cmd_train.losses.outputs import QueuedKeys


class KeyQueue(nn.Module):
    """Most recent keys of a moving average of an encoder; part of the state dict, so that runs resume exactly.

    Args:
        encoder: initial key encoder.
        size: capacity M in keys, over all ranks.
        features: dimension D of a key.
        momentum: momentum of the moving average, in [0, 1), updated per step; with ``optim.accumulate``, per
            micro-batch.
    """

    key_MD: Tensor
    video_M: Tensor
    position: Tensor

    def __init__(self, encoder: nn.Module, *, size: int, features: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.slow_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.register_buffer("key_MD", torch.zeros(size, features))
        self.register_buffer("video_M", torch.full((size,), -1))  # -1: empty slot
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def restart(self, encoder: nn.Module) -> None:
        """Empty the queue and reset the moving average to the weights of the encoder."""
        self.slow_encoder.load_state_dict(encoder.state_dict())
        self.video_M.fill_(-1)
        self.position.zero_()

    @torch.no_grad()
    def forward(self, encoder: nn.Module, keyframe_B31HW: Tensor, video_B: Tensor) -> QueuedKeys:
        """Return the queued keys; in training, also update the moving average and enqueue the keys of this batch.

        Args:
            encoder: the trained encoder.
            keyframe_B31HW: keyframes of this rank's batch.
            video_B: video index of each keyframe, consistent across ranks.
        """
        stored = QueuedKeys(
            key_MD=self.key_MD.clone(),
            usable_BM=(self.video_M >= 0) & (self.video_M != video_B[:, None]),
        )
        if self.training:
            for slow, fast in zip(self.slow_encoder.parameters(), encoder.parameters(), strict=True):
                slow.lerp_(fast.detach().to(slow.dtype), 1 - self.momentum)
            sizes = sizes_of_ranks(len(video_B), video_B.device)
            self._store(gather(self.slow_encoder(keyframe_B31HW), sizes), gather(video_B, sizes))
        return stored

    def _store(self, key_GD: Tensor, video_G: Tensor) -> None:
        size = len(self.key_MD)
        key_GD, video_G = key_GD[-size:], video_G[-size:]
        row_G = (self.position + torch.arange(len(key_GD), device=key_GD.device)) % size
        self.key_MD[row_G] = key_GD.to(self.key_MD.dtype)
        self.video_M[row_G] = video_G
        self.position.add_(len(key_GD)).remainder_(size)
