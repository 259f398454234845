"""Keys of earlier batches as further negatives of context matching, for batches too small to offer many.

Keys of the batch at hand come from the encoder that is being trained, with gradient, as without a queue. Earlier ones
come from a slowly moving average of that encoder (momentum contrast; He et al., 2020), so that those of many steps
ago are still comparable. Motion has no such queue: a batch of 8 offers 8 x 4 x 49 = 1568 motion keys by itself.

Shape legend:
    B  samples of this rank's batch
    M  keys in the queue
    D  features of an embedding
"""

# ruff: noqa: N815 (carriers name the shapes of their tensors)

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cmd_train.distributed.gather import gather, sizes_of_ranks
from cmd_train.losses.model_output import QueuedKeys


class KeyQueue(nn.Module):
    """The last keys of a slow copy of an encoder; all of it is in the state dict, so that a run resumes exactly.

    Args:
        encoder: the encoder of keys, as initialised.
        size: keys M to remember, over all ranks.
        features: features D of a key.
        momentum: share of the slow copy's weights that stays at each step, in [0, 1); with ``optim.accumulate`` at each
            part of a step.
    """

    key_MD: Tensor
    video_M: Tensor
    position: Tensor

    def __init__(self, encoder: nn.Module, *, size: int, features: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.slow_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.register_buffer("key_MD", torch.zeros(size, features))
        self.register_buffer("video_M", torch.full((size,), -1))  # -1: nothing stored yet
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def restart(self, encoder: nn.Module) -> None:
        """Empties the queue and makes the slow copy equal to the encoder again."""
        self.slow_encoder.load_state_dict(encoder.state_dict())
        self.video_M.fill_(-1)
        self.position.zero_()

    @torch.no_grad()
    def forward(self, encoder: nn.Module, keyframe_B31HW: Tensor, video_B: Tensor) -> QueuedKeys:
        """Returns what is stored and, in training, moves the slow copy on and stores the keys of this batch.

        Args:
            encoder: the encoder as trained so far.
            keyframe_B31HW: keyframes of this rank's batch.
            video_B: which video each is of, by numbers that mean the same on all ranks.
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
