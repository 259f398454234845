"""Division of a manifest into shards of consecutive rows, independent of workers and machines."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.rows import Block, ListedRows, Rows
from cmd_extract.schema import SHARD_PATTERN, VideoRecord, hash_records, row_texts

MAX_VIDEOS_PER_SHARD = 256
_TARGET_SHARDS = 32
_LARGEST_AUTOMATIC = (MAX_VIDEOS_PER_SHARD - 1) * _TARGET_SHARDS
"""Number of rows above which automatic shards have the maximum size, whatever follows."""


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
    """

    number: int
    rows: range
    rows_hash: str
    source: Rows
    start: int
    stop: int

    @classmethod
    def of(cls, number: int, records: Sequence[VideoRecord]) -> ShardPlan:
        """Return a plan of rows in memory."""
        rows = range(records[0].row, records[0].row + len(records))
        source = ListedRows(tuple(records))
        return cls(number=number, rows=rows, rows_hash=hash_records(records), source=source, start=0, stop=len(records))

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardPlan.of, (self.number, self.read_records())

    @property
    def name(self) -> str:
        """File name of the shard."""
        return SHARD_PATTERN.format(self.number)

    def read_records(self) -> tuple[VideoRecord, ...]:
        """Return the rows, read again from the manifest.

        Raises:
            ManifestError: they have changed since they were planned, or cannot be read.
        """
        records = self.source.read(self.rows, self.start, self.stop)
        if hash_records(records) != self.rows_hash:
            raise ManifestError(
                f"the manifest has changed since it was read (rows {self.rows.start} to {self.rows.stop - 1}, counted "
                "from 0); restore it, or run the same command again"
            )
        return records


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
        number = self.numbers[index]
        return ShardPlan(
            number=number,
            rows=range(*self.first_rows[number : number + 2].tolist()),
            rows_hash=self.hashes[number].tobytes().hex(),
            source=self.source,
            start=int(self.starts[number]),
            stop=int(self.starts[number + 1]),
        )

    def count_rows(self) -> int:
        """Return the number of manifest rows."""
        sizes = np.diff(self.first_rows)
        return int(sizes[self.numbers.start : self.numbers.stop : self.numbers.step].sum())


def automatic_videos_per_shard(rows: int) -> int:
    """Return the default shard size: about 32 shards, so that many workers can share the work; at most 256 videos."""
    return min(MAX_VIDEOS_PER_SHARD, max(1, -(-rows // _TARGET_SHARDS)))


class ManifestPart(NamedTuple):
    """Consecutive manifest rows that were added to an extraction at the same time; no shard has rows of two parts.

    Attributes:
        rows: number of rows.
        videos_per_shard: rows per shard.
        manifest_hash: hash of all manifest rows up to the end of the part, see ``schema.hash_records``.
    """

    rows: int
    videos_per_shard: int
    manifest_hash: str


class Planned(NamedTuple):
    """Shards of a manifest.

    Attributes:
        plans: the shards.
        parts: the manifest rows, in the parts in which they were added to the output folder.
        manifest_sha256: hash of the bytes of the manifest file.
        is_saved: whether the plan was read from the output folder, see ``cmd_extract.run.plan_file``.
    """

    plans: ShardPlans
    parts: tuple[ManifestPart, ...]
    manifest_sha256: str
    is_saved: bool = False

    @property
    def rows(self) -> int:
        """Number of manifest rows."""
        return sum(part.rows for part in self.parts)


@dataclass
class _Planner:
    """Divides rows into shards while they are read; keeps only those of the shard that is not complete yet.

    Attributes:
        recorded: parts that an extraction has already.
        videos_per_shard: rows per shard after those; None for ``automatic_videos_per_shard``.
    """

    recorded: Sequence[ManifestPart]
    videos_per_shard: int | None
    parts: list[ManifestPart] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    first_rows: array[int] = field(default_factory=lambda: array("q", [0]))
    starts: array[int] = field(default_factory=lambda: array("q"))
    hashes: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256(b"[")
        self.part_rows = 0  # of the part that is not complete yet

    def add(self, block: Block) -> None:
        """Add rows."""
        rows = range(block.first, block.first + len(block))
        self.texts += row_texts(rows, block.columns["id"], block.columns["path"])
        self.positions += block.starts
        self._divide(at_end=False)

    def finish(self, stop: int) -> None:
        """Divide the last rows, which end at a position of the manifest."""
        self._divide(at_end=True)
        if self.part_rows:
            self._end_part()
        self.starts.append(stop)

    def _divide(self, *, at_end: bool) -> None:
        start = 0
        while size := self._next_size(len(self.texts) - start, at_end):
            self._add_shard(self.texts[start : start + size], self.positions[start])
            start += size
            if len(self.parts) < len(self.recorded) and self.part_rows == self.recorded[len(self.parts)].rows:
                self._end_part()
        del self.texts[:start], self.positions[:start]

    def _next_size(self, rows: int, at_end: bool) -> int:
        """Return the size of the next shard; 0 if more rows must be read first, or none are left."""
        if len(self.parts) < len(self.recorded):
            part = self.recorded[len(self.parts)]
            size = min(part.videos_per_shard, part.rows - self.part_rows)
        else:
            if self.videos_per_shard is None:
                if rows <= _LARGEST_AUTOMATIC and not at_end:
                    return 0
                self.videos_per_shard = automatic_videos_per_shard(rows)
            size = self.videos_per_shard
        return min(rows, size) if at_end or rows >= size else 0

    def _add_shard(self, texts: Sequence[str], position: int) -> None:
        text = ",".join(texts).encode()
        self.digest.update(b"," + text if self.starts else text)
        self.hashes += hashlib.sha256(b"[" + text + b"]").digest()
        self.starts.append(position)
        self.first_rows.append(self.first_rows[-1] + len(texts))
        self.part_rows += len(texts)

    def _end_part(self) -> None:
        complete = self.digest.copy()
        complete.update(b"]")
        known = len(self.parts) < len(self.recorded)
        size = self.recorded[len(self.parts)].videos_per_shard if known else self.videos_per_shard
        assert size is not None, "known after the first shard"
        self.parts.append(ManifestPart(self.part_rows, size, complete.hexdigest()))
        self.part_rows = 0


def divide(source: Rows, parts: Sequence[ManifestPart] = (), videos_per_shard: int | None = None) -> Planned:
    """Divide a manifest into the rows of some parts, whatever their hashes, and a new part of the rows after those.

    The manifest is read once, as a stream.

    Args:
        source: the manifest.
        parts: parts of an extraction.
        videos_per_shard: rows per shard of the new part; None for ``automatic_videos_per_shard``.

    Raises:
        ValueError: ``videos_per_shard`` is not positive.
        ManifestError: the manifest is invalid.
    """
    if videos_per_shard is not None and videos_per_shard < 1:
        raise ValueError(f"videos_per_shard: must be at least 1, got {videos_per_shard}")
    planner, digest, stop = _Planner(parts, videos_per_shard), hashlib.sha256(), 0
    for block in source.blocks(digest.update):
        planner.add(block)
        stop = block.stop
    planner.finish(stop)
    plans = ShardPlans(
        source=source,
        first_rows=np.array(planner.first_rows, np.int64),
        starts=np.array(planner.starts, np.int64),
        hashes=np.frombuffer(planner.hashes, np.uint8).reshape(-1, 32),
        numbers=range(len(planner.first_rows) - 1),
    )
    return Planned(plans, tuple(planner.parts), digest.hexdigest())


def plan_shards(source: Rows, recorded: Sequence[ManifestPart] = (), videos_per_shard: int | None = None) -> Planned:
    """Divide a manifest into the rows that an extraction has already and a part of new rows, if any.

    Args:
        source: the manifest.
        recorded: the parts of the extraction so far.
        videos_per_shard: rows per shard of the new part; None for ``automatic_videos_per_shard``. If there are no new
            rows, that of the last part.

    Returns:
        The recorded parts, and a new one. If the manifest does not start with the recorded rows, one part of all rows.

    Raises:
        ValueError: ``videos_per_shard`` is not positive.
        ManifestError: the manifest is invalid.
    """
    planned = divide(source, recorded, videos_per_shard)
    if planned.parts[: len(recorded)] != tuple(recorded):
        return divide(source, (), videos_per_shard)
    if len(planned.parts) > len(recorded) or videos_per_shard is None:
        return planned
    last = planned.parts[-1]._replace(videos_per_shard=videos_per_shard)
    return planned._replace(parts=(*planned.parts[:-1], last))


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
