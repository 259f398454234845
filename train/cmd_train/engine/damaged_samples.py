"""Damaged samples: masked in their batch, counted and reported; no other sample is trained on in their place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from torch.utils.data import Dataset

from cmd_train.data.batch import Batch, ClipSample, PackedBatch
from cmd_train.data.batch_memory import BatchPool
from cmd_train.data.dataset import DamagedSampleError, PretrainDataset
from cmd_train.distributed.process_group import RankContext, gather_texts
from cmd_train.monitoring.metrics import TrainingError


class TolerantDataset(Dataset[PackedBatch]):
    """Dataset of batches, indexed by the keys of their samples; masks samples that cannot be read.

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
        samples: list[ClipSample | None] = []
        damaged: list[tuple[str, str]] = []
        for number, key in enumerate(keys):
            try:
                samples.append(self._dataset.read(key, memory.sample(number)))
            except DamagedSampleError as error:
                samples.append(None)
                damaged.append((self._dataset.video_id(key), str(error)))
        if len(damaged) == len(keys):
            raise DamagedSampleError(f"all samples of a batch are damaged: {_join_reasons(dict(damaged))}")
        return PackedBatch.pack(memory, samples, damaged)


class DamageTracker:
    """Counts damaged videos over the whole run and all ranks.

    Args:
        limit: number of damaged videos to tolerate.
        known: reasons by video id, from earlier runs in the same folder.
        log: prints a line for the user.
    """

    def __init__(self, limit: int, known: Mapping[str, str], log: Callable[[str], None]) -> None:
        self._limit, self._log = limit, log
        self.known = dict(known)

    def update(self, batch: Batch, step: int, context: RankContext) -> None:
        """Count the damaged samples of a step's batches on all ranks; a collective operation.

        Args:
            batch: this rank's batch, as loaded.
            step: steps completed before this one.
            context: this process among all.

        Raises:
            TrainingError: more videos are damaged than allowed.
        """
        reports = [json.loads(text) for text in gather_texts(json.dumps(batch.damaged), context)]
        new = {video_id: reason for damaged in reports for video_id, reason in damaged if video_id not in self.known}
        self.known |= new
        if len(self.known) > self._limit:
            raise TrainingError(
                f"step {step + 1}: {len(self.known)} damaged videos, but data.max_damaged allows {self._limit}: "
                f"{_join_reasons(self.known)}. Extract them again, leave them out, or raise data.max_damaged"
            )
        for video_id, reason in new.items():
            self._log(f"Left out damaged video {len(self.known)} of {self._limit} allowed: {video_id}: {reason}")


def _join_reasons(damaged: Mapping[str, str]) -> str:
    return "; ".join(damaged.values())
