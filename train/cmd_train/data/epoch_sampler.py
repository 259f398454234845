"""In which order samples are trained on: a pure function of (seed, epoch), cut into global batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from cmd_train.data.sampling import seed_sequence

_PURPOSE_ORDER = (1,)
# As a user changes it.
_BATCH = "optim.batch_size (--batch-size)"


@dataclass(frozen=True, kw_only=True)
class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of keys (epoch, position) for one rank, from some step to the end of the training.

    Step s of a training is global batch s mod ``steps_per_epoch`` of epoch s div ``steps_per_epoch``. It holds the
    same samples whatever the number of ranks; each rank takes its own contiguous part. Give it to a data loader as
    ``batch_sampler``; one loader then serves all epochs without emptying its workers in between.

    An epoch shuffles the videos; with ``samples_per_video`` > 1 it passes over them that often, each pass shuffled
    anew, so that a video returns within one global batch only where two passes meet. The last, incomplete global
    batch of an epoch is dropped.

    Attributes:
        video_count: videos trained on.
        global_batch: samples a step, all ranks together.
        epochs: where the training ends.
        seed: decides the order.
        samples_per_video: samples that an epoch takes of each video.
        rank, world_size: which part of each global batch to take.
        first_step: the first step to give, counted from the start of the training: 0, or the steps already done.

    Raises:
        ValueError: if a number is out of range, or an epoch has fewer samples than one global batch.
    """

    video_count: int
    global_batch: int
    epochs: int
    seed: int
    samples_per_video: int = 1
    rank: int = 0
    world_size: int = 1
    first_step: int = 0

    def __post_init__(self) -> None:
        for name in ("video_count", "global_batch", "epochs", "samples_per_video", "world_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed, need at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank: {self.rank} is not allowed, need 0 to {self.world_size - 1}")
        if self.global_batch % self.world_size:
            raise ValueError(
                f"{_BATCH}: {self.global_batch} is not allowed, need a multiple of the {self.world_size} ranks"
            )
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"{_BATCH}: {self.global_batch} is not allowed, need at most the {self.samples_per_epoch} samples "
                f"of an epoch ({self.video_count} videos, data.samples_per_video={self.samples_per_video})"
            )
        if not 0 <= self.first_step <= self.total_steps:
            raise ValueError(f"first_step: {self.first_step} is not allowed, need 0 to {self.total_steps}")

    @property
    def samples_per_epoch(self) -> int:
        """Samples that an epoch draws from; those of its incomplete last batch are dropped."""
        return self.video_count * self.samples_per_video

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch."""
        return self.samples_per_epoch // self.global_batch

    @property
    def total_steps(self) -> int:
        """Global batches of the training."""
        return self.steps_per_epoch * self.epochs

    def __len__(self) -> int:
        return self.total_steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        local = self.global_batch // self.world_size
        order, order_epoch = np.empty(0, np.int64), -1
        for step in range(self.first_step, self.total_steps):
            epoch, number = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = self.epoch_order(epoch), epoch
            start = number * self.global_batch + self.rank * local
            yield [(epoch, int(position)) for position in order[start : start + local]]

    def epoch_order(self, epoch: int) -> NDArray[np.int64]:
        """(samples_per_epoch,) int64, the positions of an epoch in the order of training."""
        passes = []
        for number in range(self.samples_per_video):
            rng = np.random.default_rng(seed_sequence(self.seed, epoch, number, purpose=_PURPOSE_ORDER))
            passes.append(number * self.video_count + rng.permutation(self.video_count))
        return np.concatenate(passes)
