"""Damaged samples: left out of their batch, counted and reported; never replaced by other samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch.utils.data import Dataset

from cmd_train.data.batch import Batch, ClipSample, PackedBatch
from cmd_train.data.batch_memory import BatchPool
from cmd_train.data.dataset import DamagedSampleError, PretrainDataset
from cmd_train.distributed.process_group import RankContext, gather_texts
from cmd_train.monitoring.metrics import TrainingError


class TolerantDataset(Dataset[PackedBatch]):
    """Dataset of batches, indexed by the keys of their samples; leaves out samples that cannot be read.

    For a data loader with ``batch_size=None`` and an ``EpochSampler`` as its sampler.
    """

    def __init__(self, dataset: PretrainDataset) -> None:
        self._dataset = dataset
        self._pool = BatchPool()

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> PackedBatch:
        """Read a batch; it records which of its samples are damaged.

        Raises:
            DamagedSampleError: none of the samples can be read.
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
            raise DamagedSampleError(f"all samples of a batch are damaged: {_join_reasons(dict(damaged))}")
        return PackedBatch.pack(memory, samples, damaged)


class DamageTracker:
    """Counts damaged videos over the whole run and all ranks.

    Args:
        limit: number of damaged videos to tolerate.
        parts: number of micro-batches that a rank splits its batch into.
        known: reasons by video id, from earlier runs in the same folder.
        log: prints a line for the user.
    """

    def __init__(self, limit: int, parts: int, known: Mapping[str, str], log: Callable[[str], None]) -> None:
        self._limit, self._parts, self._log = limit, parts, log
        self.known = dict(known)

    def update(self, batch: Batch, step: int, context: RankContext) -> Batch:
        """Count the damaged samples of a batch, if there are any on any rank; a collective operation.

        Args:
            batch: this rank's batch, as loaded.
            step: steps completed before this one.
            context: this process among all.

        Returns:
            The batch, with the batch sizes of all ranks if they may differ.

        Raises:
            TrainingError: more videos are damaged than allowed, or a rank has too few samples left.
        """
        reports = [json.loads(text) for text in gather_texts(json.dumps([len(batch), batch.damaged]), context)]
        new = {video_id: reason for _, missing in reports for video_id, reason in missing if video_id not in self.known}
        self.known |= new
        if len(self.known) > self._limit:
            raise TrainingError(
                f"step {step + 1}: {len(self.known)} damaged videos, but data.max_damaged allows {self._limit}: "
                f"{_join_reasons(self.known)}. Extract them again, leave them out, or raise data.max_damaged"
            )
        for video_id, reason in new.items():
            self._log(f"Left out damaged video {len(self.known)} of {self._limit} allowed: {video_id}: {reason}")
        sizes = tuple(size for size, _ in reports)
        if min(sizes) < 2 * self._parts:
            raise TrainingError(
                f"step {step + 1}: only {min(sizes)} samples of a rank's batch can be read, need at least "
                f"{2 * self._parts}: {_join_reasons(self.known)}"
            )
        return replace(batch, rank_sizes=sizes if context.world_size > 1 else None)


def _join_reasons(damaged: Mapping[str, str]) -> str:
    return "; ".join(damaged.values())
