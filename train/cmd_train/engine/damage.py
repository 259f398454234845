"""Damaged samples: left out of their batch, counted, reported with their ids; never replaced by others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch.utils.data import Dataset

from cmd_train.data.batch import Batch, ClipSample, PackedBatch
from cmd_train.data.batch_memory import BatchPool
from cmd_train.data.dataset import DamagedSampleError, PretrainDataset
from cmd_train.distributed.process_group import Placement, any_rank, from_all_ranks
from cmd_train.monitoring.metrics import TrainingError


class TolerantDataset(Dataset[PackedBatch]):
    """Batches by the keys of their samples; samples that cannot be read are left out, and the batch tells which.

    For a data loader with ``batch_size=None`` and an ``EpochSampler`` as its sampler.
    """

    def __init__(self, dataset: PretrainDataset) -> None:
        self._dataset = dataset
        self._pool = BatchPool()

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> PackedBatch:
        """Read the samples of some keys.

        Raises:
            DamagedSampleError: none of them can be read.
        """
        memory = self._pool.take(self._dataset.layout(len(keys)))
        samples: list[ClipSample] = []
        damaged: list[tuple[str, str]] = []
        for key in keys:
            try:
                samples.append(self._dataset.read(key, memory.sample(len(samples))))
            except DamagedSampleError as error:
                damaged.append((self._dataset.video_id(key), str(error)))
        if not samples:
            raise DamagedSampleError(f"no sample of a batch can be read: {_told(dict(damaged))}")
        return PackedBatch.of(memory, samples, damaged)


class DamageTally:
    """Counts damaged videos over the whole training and all ranks.

    Args:
        limit: how many to put up with.
        parts: parts that a rank's batch is computed in.
        known: video ids and what is damaged of them, from earlier runs.
        say: prints a line for the user.
    """

    def __init__(self, limit: int, parts: int, known: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._limit, self._parts, self._say = limit, parts, say
        self.known = dict(known)

    def take(self, batch: Batch, step: int, placement: Placement) -> Batch:
        """Counts what is missing from a batch; all ranks must call this together.

        Args:
            batch: this rank's, as loaded.
            step: steps done before this one.
            placement: this process among all.

        Returns:
            The batch; where ranks now hold batches of different sizes, it knows them.

        Raises:
            TrainingError: more videos are damaged than allowed, or too few samples are left.
        """
        (damaged,) = any_rank((bool(batch.damaged),), placement)
        if not damaged:
            return batch
        told = [json.loads(text) for text in from_all_ranks(json.dumps([len(batch), batch.damaged]), placement)]
        new = {video_id: reason for _, missing in told for video_id, reason in missing if video_id not in self.known}
        self.known |= new
        if len(self.known) > self._limit:
            raise TrainingError(
                f"step {step + 1}: {len(self.known)} damaged videos, data.max_damaged allows {self._limit}: "
                f"{_told(self.known)}. Extract them again, or leave them out"
            )
        for video_id, reason in new.items():
            self._say(f"damaged, left out ({len(self.known)} of {self._limit} allowed): {video_id}: {reason}")
        sizes = tuple(size for size, _ in told)
        if min(sizes) < 2 * self._parts:
            raise TrainingError(
                f"step {step + 1}: only {min(sizes)} samples of a rank's batch can be read, need {2 * self._parts}: "
                f"{_told(self.known)}"
            )
        return replace(batch, rank_sizes=sizes if placement.world_size > 1 else None)


def _told(damaged: Mapping[str, str]) -> str:
    return "; ".join(damaged.values())
