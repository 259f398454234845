"""Downloads shards to the cache ahead of their use, in the order in which the samples need them."""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from cmd_extract.errors import CacheError
from cmd_extract.shard.cache import RemoteShard, ShardCache
from cmd_extract.system.locks import release
from cmd_train.data.epoch_sampler import EpochSampler

_DOWNLOADS_AT_ONCE = 4
_BATCHES_PER_WORKER = 2  # torch's data loader requests this many ahead
_PLANNED_EPOCHS = 3  # the one before, because it is not completed yet
_MARGIN = 1.01  # of a size in an error message, which is rounded


def shards_per_block(sizes: Sequence[int], cache_bytes: int) -> int:
    """Return how many shards to shuffle at a time, so that any of them fit half the cache; 0 for all.

    Room for one shard is left to readers that are not read ahead for.

    Args:
        sizes: bytes of each shard.
        cache_bytes: maximum size of the cache.

    Raises:
        CacheError: the cache is too small for one shard per half.
    """
    largest = sorted(sizes, reverse=True)
    count = int(np.searchsorted(np.cumsum(largest), (cache_bytes - largest[0]) / 2, side="right"))
    if not count:
        raise CacheError(
            f"--cache-gb: {cache_bytes / 1e9:.3g} GB are too little for shards of up to {largest[0] / 1e9:.3g} GB; at "
            f"least {3 * largest[0] * _MARGIN / 1e9:.3g} GB are needed (one shard in use, the next one, and one for "
            "other readers)"
        )
    return 0 if count == len(sizes) else count


class ReadAhead(Sampler[list[tuple[int, int]]]):
    """The batches of a sampler; a batch is yielded once the cache has all shards that it needs.

    Shards are kept there from their download until their last use in the epoch. They are downloaded in the order of
    their first use, as far ahead as there is room. The order is that of the global batches: ranks on one machine
    share the copies.

    Args:
        sampler: batches of this rank.
        shard_of_video: (videos,) int64, shard of each training video.
        shards: the shards, by number.
        cache: the cache.
        workers: number of data loading processes.

    Raises:
        CacheError: the cache is too small for the shards in use at once.
    """

    def __init__(
        self,
        sampler: EpochSampler,
        shard_of_video: NDArray[np.int64],
        shards: Sequence[RemoteShard],
        cache: ShardCache,
        workers: int,
    ) -> None:
        self._sampler, self._shard_of_video = sampler, shard_of_video
        self._shards, self._cache = shards, cache
        self._in_flight = 1 + _BATCHES_PER_WORKER * workers
        used = [shards[number].size_bytes for number in np.unique(shard_of_video)]
        self._budget = cache.max_bytes - max(used)
        if len(sampler):
            self._check_room()

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self._sampler.first_step
        with _Downloads(self, self._cache, self._budget) as downloads:
            for step, batch in enumerate(self._sampler, first):
                downloads.advance(step)
                yield batch

    def uses(self, epoch: int) -> list[Use]:
        """Return when an epoch uses which shards, in the order of their first use."""
        sampler = self._sampler
        samples = sampler.steps_per_epoch * sampler.global_batch
        videos = sampler.epoch_order(epoch)[:samples] % sampler.video_count
        numbers = self._shard_of_video[videos]
        found, first = np.unique(numbers, return_index=True)
        _, last = np.unique(numbers[::-1], return_index=True)
        begin = epoch * sampler.steps_per_epoch
        steps = np.stack([first, samples - 1 - last]) // sampler.global_batch + begin
        order = np.argsort(first)
        return [
            Use(self._shards[number], int(start), int(stop) + self._in_flight)
            for number, (start, stop) in zip(found[order].tolist(), steps.T[order].tolist(), strict=True)
        ]

    @property
    def epochs(self) -> range:
        """Epochs that are not completed."""
        return range(self._sampler.first_step // self._sampler.steps_per_epoch, self._sampler.epochs)

    def _check_room(self) -> None:
        """Check that the cache has room for the shards in use at once, in the next epoch."""
        uses = self.uses(self.epochs[0])
        changes = [(use.first, use.shard.size_bytes) for use in uses] + [(u.end, -u.shard.size_bytes) for u in uses]
        needed = int(np.cumsum([size for _, size in sorted(changes)]).max())
        if needed > self._budget:
            total = (needed + self._cache.max_bytes - self._budget) * _MARGIN
            raise CacheError(
                f"--cache-gb: {self._cache.max_bytes / 1e9:.3g} GB are too little: the shards that are in use at once "
                f"need {total / 1e9:.3g} GB; raise it, or lower data.shuffle_shards "
                f"({self._sampler.shuffle_shards or 'all'}) or data.workers"
            )


class Use(NamedTuple):
    """Steps of an epoch in which a shard is used.

    Attributes:
        shard: the shard.
        first: first step.
        end: first step at which it is not needed any more.
    """

    shard: RemoteShard
    first: int
    end: int


class _Downloads:
    """Downloads in progress and shards that are kept in the cache; a context manager that ends all of them."""

    def __init__(self, plan: ReadAhead, cache: ShardCache, budget: int) -> None:
        self._plan, self._cache, self._budget = plan, cache, budget
        self._epochs = iter(plan.epochs)
        self._next_epoch: list[Use] = []
        self._waiting: deque[Use] = deque()
        self._kept: list[tuple[Use, Future[int]]] = []
        self._kept_shards: Counter[RemoteShard] = Counter()
        self._first_steps: dict[Path, list[int]] = {}
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="read-ahead")
        self._plan_epoch()
        self._plan_epoch()

    def __enter__(self) -> _Downloads:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for _, future in self._kept:
            if not future.cancelled() and future.exception() is None:
                release(future.result())

    def advance(self, step: int) -> None:
        """Wait until the shards of a step are in the cache, and start further downloads.

        Raises:
            CacheError: one of them cannot be downloaded.
        """
        for use, future in [each for each in self._kept if each[0].end <= step]:
            release(future.result())
            self._kept_shards[use.shard] -= 1
        self._kept = [each for each in self._kept if each[0].end > step]
        self._start_downloads(step)
        for use, future in self._kept:
            if use.first <= step:
                future.result()

    def _start_downloads(self, step: int) -> None:
        kept_bytes = sum(shard.size_bytes for shard, count in self._kept_shards.items() if count)
        while self._waiting:
            use = self._waiting[0]
            kept_bytes += 0 if self._kept_shards[use.shard] else use.shard.size_bytes
            if use.first > step and kept_bytes > self._budget:
                break
            self._waiting.popleft()
            if not self._waiting:
                self._plan_epoch()
            if use.end > step:  # otherwise the shard was used before the run was continued
                self._kept_shards[use.shard] += 1
                future = self._pool.submit(self._cache.fetch, use.shard, self._next_use, self._stop)
                self._kept.append((use, future))

    def _plan_epoch(self) -> None:
        """Append the planned epoch to the downloads, and plan the one after it."""
        self._waiting += self._next_epoch
        epoch = next(self._epochs, None)
        self._next_epoch = [] if epoch is None else self._plan.uses(epoch)
        for use in self._next_epoch:
            steps = self._first_steps.setdefault(use.shard.path, [])
            steps.append(use.first)
            del steps[:-_PLANNED_EPOCHS]

    def _next_use(self, path: Path) -> float:
        """Return the step at which a copy that is not kept will be used next."""
        started = self._waiting[0].first if self._waiting else math.inf
        return min((step for step in self._first_steps.get(path, ()) if step >= started), default=math.inf)
