"""Division of a manifest into shards of consecutive rows, independent of workers and machines."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.rows import ListedRows, Rows
from cmd_extract.schema import SHARD_PATTERN, VideoRecord, hash_records

DEFAULT_SHARD_GB = 4.0
_MAX_SHARD_GB = 1e6
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """The manifest rows of one shard. They are read when they are needed; a pickled plan contains them.

    Attributes:
        number: index of the shard.
        rows: numbers of the manifest rows, consecutive.
        rows_hash: hash of the rows without labels, groups and splits, see ``schema.hash_records``; a shard of other
            rows is never mistaken for this one.
        source: the manifest.
        start, stop: position of the rows there, see ``cmd_extract.manifest.rows.Block``.
        replaces: size and modification time (ns) of a file that is to be built again even if it looks finished.
    """

    number: int
    rows: range
    rows_hash: str
    source: Rows
    start: int
    stop: int
    replaces: tuple[int, int] | None = None

    @classmethod
    def of(cls, number: int, records: Sequence[VideoRecord], replaces: tuple[int, int] | None = None) -> ShardPlan:
        """Return a plan of rows in memory."""
        return cls(
            number=number,
            rows=range(records[0].row, records[0].row + len(records)),
            rows_hash=hash_records(records),
            source=ListedRows(tuple(records)),
            start=0,
            stop=len(records),
            replaces=replaces,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardPlan.of, (self.number, self.read_records(), self.replaces)

    @property
    def name(self) -> str:
        """File name of the shard."""
        return SHARD_PATTERN.format(self.number)

    def read_records(self) -> tuple[VideoRecord, ...]:
        """Return the rows, read again from the manifest.

        Raises:
            ManifestError: they have changed since they were planned, or cannot be read.
        """
        return self.check(self.source.read(self.rows, self.start, self.stop))

    def check(self, records: tuple[VideoRecord, ...]) -> tuple[VideoRecord, ...]:
        """Return the rows if they are those that were planned.

        Raises:
            ManifestError: they have changed since.
        """
        if hash_records(records) != self.rows_hash:
            raise ManifestError(
                f"the manifest has changed since it was read (rows {self.rows.start} to {self.rows.stop - 1}, counted "
                "from 0); restore it, or run the same command again"
            )
        return records


def read_each(plans: Iterable[ShardPlan]) -> Iterator[tuple[VideoRecord, ...]]:
    """Yield the rows of each shard, see ``ShardPlan.read_records``; those of consecutive shards are read together."""
    for run in _consecutive(plans):
        first = run[0].rows.start
        records = run[0].source.read(range(first, run[-1].rows.stop), run[0].start, run[-1].stop)
        for plan in run:
            yield plan.check(records[plan.rows.start - first : plan.rows.stop - first])


def _consecutive(plans: Iterable[ShardPlan]) -> Iterator[list[ShardPlan]]:
    """Divide plans into runs of consecutive shards of one manifest that have few rows together."""
    run: list[ShardPlan] = []
    for plan in plans:
        follows = run and run[-1].rows.stop == plan.rows.start and run[-1].source is plan.source
        if run and not (follows and plan.rows.stop - run[0].rows.start <= _ROWS_AT_ONCE):
            yield run
            run = []
        run.append(plan)
    if run:
        yield run


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardPlans(Sequence[ShardPlan]):
    """The plans of some shards, in 48 bytes per shard of the manifest.

    Attributes:
        source: the manifest.
        first_rows: (S + 1,) int64, first row of each of the S shards of the manifest, and the number of rows.
        starts: (S + 1,) int64, position of that row, and the end of the last one, see ``Block``.
        hashes: (S, 32) uint8, ``ShardPlan.rows_hash``.
        numbers: the shards of this sequence.
    """

    source: Rows
    first_rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    hashes: NDArray[np.uint8]
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[ShardPlan]:
        for first in range(0, len(self.numbers), _ROWS_AT_ONCE):
            yield from self.pick(self.numbers[first : first + _ROWS_AT_ONCE])

    def pick(self, numbers: Sequence[int]) -> Iterator[ShardPlan]:
        """Yield the plans of shards of the manifest; many at once take less time than one by one."""
        index = np.array(numbers, np.int64)
        hashes = self.hashes[index].tobytes().hex()
        columns = (c[i].tolist() for c in (self.first_rows, self.starts) for i in (index, index + 1))
        for place, (number, row, end_row, start, stop) in enumerate(zip(numbers, *columns, strict=True)):
            yield ShardPlan(
                number=number,
                rows=range(row, end_row),
                rows_hash=hashes[place * 64 : place * 64 + 64],
                source=self.source,
                start=start,
                stop=stop,
            )

    @overload
    def __getitem__(self, index: int) -> ShardPlan: ...

    @overload
    def __getitem__(self, index: slice) -> ShardPlans: ...

    def __getitem__(self, index: int | slice) -> ShardPlan | ShardPlans:
        if isinstance(index, slice):
            return ShardPlans(
                source=self.source,
                first_rows=self.first_rows,
                starts=self.starts,
                hashes=self.hashes,
                numbers=self.numbers[index],
            )
        return next(self.pick([self.numbers[index]]))

    def count_rows(self) -> int:
        """Return the number of manifest rows."""
        sizes = np.diff(self.first_rows)
        return int(sizes[self.numbers.start : self.numbers.stop : self.numbers.step].sum())


class ShardLimits(NamedTuple):
    """When to close a shard of new rows: before it has more rows or more expected bytes.

    Attributes:
        videos_per_shard: maximum number of rows; None for ``division.automatic_videos_per_shard``.
        shard_gb: maximum of expected gigabytes, unless a single row has more; None for ``DEFAULT_SHARD_GB``.
    """

    videos_per_shard: int | None = None
    shard_gb: float | None = None

    def check(self) -> None:
        """Raise a ValueError if a limit is not positive, or too large."""
        if self.videos_per_shard is not None and self.videos_per_shard < 1:
            raise ValueError(f"videos_per_shard: must be at least 1, got {self.videos_per_shard}")
        if self.shard_gb is not None and not 0 < self.shard_gb <= _MAX_SHARD_GB:
            raise ValueError(f"shard_gb: must be positive and at most {_MAX_SHARD_GB:.0f}, got {self.shard_gb}")


class ManifestPart(NamedTuple):
    """Consecutive manifest rows that were added to an extraction at the same time; no shard has rows of two parts.

    Attributes:
        rows: number of rows.
        videos_per_shard: maximum number of rows per shard.
        manifest_hash: hash of all manifest rows up to the end of the part, see ``schema.hash_records``.
        shard_gb: maximum of expected gigabytes per shard.
        sizes: rows of each shard, as pairs of a number of rows and of consecutive shards that have it; empty if all but
            the last have ``videos_per_shard``. They are recorded because the sources may change or disappear.
    """

    rows: int
    videos_per_shard: int
    manifest_hash: str
    shard_gb: float = DEFAULT_SHARD_GB
    sizes: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, values: Sequence[Any]) -> ManifestPart:
        """Return the part that JSON values describe."""
        part = cls(*values)
        return part._replace(sizes=tuple((size, count) for size, count in part.sizes))

    def sizes_of_shards(self) -> Iterator[int]:
        """Yield the number of rows of each shard."""
        for size, count in self.sizes:
            yield from itertools.repeat(size, count)
        if not self.sizes:
            yield from itertools.repeat(self.videos_per_shard, self.rows // self.videos_per_shard)
            if rest := self.rows % self.videos_per_shard:
                yield rest


class Planned(NamedTuple):
    """Shards of a manifest.

    Attributes:
        plans: the shards.
        parts: the manifest rows, in the parts in which they were added to the output folder.
        manifest_sha256: hash of the bytes of the manifest file.
        recorded, limits: arguments of ``division.plan_shards``, from which the plan was made.
        is_saved: whether the plan was read from the output folder, see ``cmd_extract.run.plan_file``.
    """

    plans: ShardPlans
    parts: tuple[ManifestPart, ...]
    manifest_sha256: str
    recorded: tuple[ManifestPart, ...]
    limits: ShardLimits
    is_saved: bool = False

    @property
    def rows(self) -> int:
        """Number of manifest rows."""
        return sum(part.rows for part in self.parts)


def count_rows(plans: Sequence[ShardPlan]) -> int:
    """Return the number of manifest rows of some shards."""
    return plans.count_rows() if isinstance(plans, ShardPlans) else sum(len(plan.rows) for plan in plans)


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of one task of an extraction; a run on a single machine is task 0 of 1.

    Attributes:
        task: task index, 0-based.
        num_tasks: total number of tasks.
    """

    task: int
    num_tasks: int

    def __post_init__(self) -> None:
        if self.num_tasks < 1:
            raise ValueError(f"num_tasks: must be at least 1, got {self.num_tasks}")
        if not 0 <= self.task < self.num_tasks:
            raise ValueError(f"task: must be between 0 and {self.num_tasks - 1} (num_tasks - 1), got {self.task}")

    def __str__(self) -> str:
        return f"task {self.task} of {self.num_tasks}"

    def of(self, plans: ShardPlans) -> ShardPlans:
        """Return the task's shards. Every shard belongs to exactly one task."""
        return plans[self.task :: self.num_tasks]

    def shard_numbers(self, total: int) -> range:
        """Return the numbers of the task's shards, out of ``total`` shards."""
        return range(self.task, total, self.num_tasks)
