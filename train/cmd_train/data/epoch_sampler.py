"""Order of the training samples, a pure function of (seed, epoch), divided into global batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from cmd_extract.system.validation import require, require_range
from cmd_train.data.sampling import seed_sequence

_PURPOSE_ORDER = (1,)
# The setting that users change, for error messages.
_BATCH = "optim.batch_size (--batch-size)"


@dataclass(frozen=True, kw_only=True)
class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of keys (epoch, position) for one rank, from a given step to the end of the run.

    Step s of a run is global batch s mod ``steps_per_epoch`` of epoch s div ``steps_per_epoch``. It contains the same
    samples for any number of ranks; each rank takes a contiguous part. Used as the sampler
    of a data loader with ``batch_size=None``, it covers all epochs, so that workers stay busy between them.

    Each epoch shuffles the videos; with ``samples_per_video`` > 1 it makes as many passes, each shuffled independently.
    No video occurs twice in a global batch, as its own negative, unless the batch is larger than the number of videos.
    The last, incomplete global batch of an epoch is dropped.

    With ``shuffle_shards``, each pass shuffles the shards, divides them into blocks of nearly equal number, and
    shuffles the videos within each block. Only the shards of one block, or at its end of two, are then needed at a
    time.

    Attributes:
        video_count: number of training videos.
        global_batch: samples per step over all ranks.
        epochs: number of epochs.
        seed: random seed of the order.
        samples_per_video: samples per video and epoch.
        rank, world_size: this rank and the number of ranks, which select the part of each global batch.
        first_step: first step to return, counted from the start of the run: 0, or the number of completed steps.
        shards: shard of each video; needed with ``shuffle_shards``.
        shuffle_shards: maximum number of shards per block; 0 shuffles all videos.

    Raises:
        ValueError: a number is out of range, or an epoch has fewer samples than a global batch.
    """

    video_count: int
    global_batch: int
    epochs: int
    seed: int
    samples_per_video: int = 1
    rank: int = 0
    world_size: int = 1
    first_step: int = 0
    shards: tuple[int, ...] = ()
    shuffle_shards: int = 0

    def __post_init__(self) -> None:
        require_range(self, "video_count", "global_batch", "epochs", "samples_per_video", "world_size", ge=1)
        require_range(self, "shuffle_shards", ge=0)
        require(
            not self.shuffle_shards or len(self.shards) == self.video_count,
            f"shards: must be {self.video_count} numbers, got {len(self.shards)}",
        )
        require_range(self, "rank", ge=0, lt=self.world_size)
        require(
            self.global_batch % self.world_size == 0,
            f"{_BATCH}: must be a multiple of the number of ranks, {self.world_size}, got {self.global_batch}",
        )
        require(
            self.steps_per_epoch > 0,
            f"{_BATCH}: must be at most the {self.samples_per_epoch} samples of an epoch ({self.video_count} videos, "
            f"data.samples_per_video={self.samples_per_video}), got {self.global_batch}; lower it, or choose a "
            "recipe for small datasets (`cmd-train recipes`)",
        )
        require_range(self, "first_step", ge=0, le=self.total_steps)

    @property
    def samples_per_epoch(self) -> int:
        """Samples per epoch, including those of the incomplete last batch, which are dropped."""
        return self.video_count * self.samples_per_video

    @property
    def steps_per_epoch(self) -> int:
        """Global batches per epoch."""
        return self.samples_per_epoch // self.global_batch

    @property
    def total_steps(self) -> int:
        """Global batches of the whole run."""
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
        """Return the positions of an epoch in training order, (samples_per_epoch,) int64."""
        passes: list[NDArray[np.int64]] = []
        for number in range(self.samples_per_video):
            rng = np.random.default_rng(seed_sequence(self.seed, epoch, number, purpose=_PURPOSE_ORDER))
            order = self._shuffle(rng)
            shared = number * self.video_count % self.global_batch  # samples of the last pass in the batch of the next
            if shared and self.global_batch <= self.video_count:
                _move_back(order, passes[-1][-shared:] % self.video_count, self.global_batch - shared)
            passes.append(number * self.video_count + order)
        return np.concatenate(passes)

    def _shuffle(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return all videos in random order, by blocks of shards if there are any."""
        order = rng.permutation(self.video_count)
        if not self.shuffle_shards:
            return order
        _, numbers = np.unique(np.array(self.shards), return_inverse=True)
        count = int(numbers.max()) + 1
        blocks = math.ceil(count / self.shuffle_shards)
        block_of_shard = rng.permutation(count) * blocks // count
        return order[np.argsort(block_of_shard[numbers[order]], kind="stable")]


def _move_back(order: NDArray[np.int64], taken: NDArray[np.int64], places: int) -> None:
    """Exchange the taken videos in the first places of an order, in place, for the next ones that are not taken."""
    is_taken = np.isin(order, taken)
    found = np.flatnonzero(is_taken[:places])
    others = places + np.flatnonzero(~is_taken[places:])[: len(found)]
    order[found], order[others] = order[others], order[found]
