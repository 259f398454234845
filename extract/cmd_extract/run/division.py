"""Division of a manifest into shards while it is read; only the rows of the shard at hand are kept."""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cmd_extract.manifest.rows import Block, Rows
from cmd_extract.run.plan import DEFAULT_SHARD_GB, ManifestPart, Planned, ShardLimits, ShardPlans
from cmd_extract.run.shard_size import Estimate
from cmd_extract.schema import row_texts

MAX_VIDEOS_PER_SHARD = 256
_TARGET_SHARDS = 32
_LARGEST_AUTOMATIC = (MAX_VIDEOS_PER_SHARD - 1) * _TARGET_SHARDS
"""Number of rows above which automatic shards have the maximum size, whatever follows."""
_NO_LIMITS = ShardLimits()


def automatic_videos_per_shard(rows: int) -> int:
    """Return the default shard size: about 32 shards, so that many workers can share the work; at most 256 videos."""
    return min(MAX_VIDEOS_PER_SHARD, max(1, -(-rows // _TARGET_SHARDS)))


@dataclass
class _Planner:
    """Divides rows into shards while they are read; keeps only those of the shard that is not complete yet.

    Attributes:
        recorded: parts that the extraction already has.
        limits: limits of shards after those.
        estimate: returns the expected bytes of rows; None to close shards by their number of rows.
    """

    recorded: Sequence[ManifestPart]
    limits: ShardLimits
    estimate: Estimate | None
    parts: list[ManifestPart] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    expected_bytes: list[int] = field(default_factory=list)
    first_rows: array[int] = field(default_factory=lambda: array("q", [0]))
    starts: array[int] = field(default_factory=lambda: array("q"))
    hashes: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256(b"[")
        self.part_sizes = array("q")  # of the shards of the part that is not complete yet
        self.part_rows = 0
        self.known_sizes = self._sizes_of_next()
        self.known_rows = sum(part.rows for part in self.recorded)
        self.videos_per_shard = self.limits.videos_per_shard

    def add(self, block: Block) -> None:
        """Add rows."""
        rows, paths = range(block.first, block.first + len(block)), block.columns["path"]
        self.texts += row_texts(rows, block.columns["id"], paths)
        self.positions += block.starts
        known = min(max(self.known_rows - block.first, 0), len(block))
        self.expected_bytes += [0] * (known if self.estimate else len(block))
        if self.estimate:
            self.expected_bytes += self.estimate(paths[known:])
        self._divide(at_end=False)

    def finish(self, stop: int) -> None:
        """Divide the last rows, which end at a position of the manifest."""
        self._divide(at_end=True)
        if self.part_rows:
            self._end_part()
        self.starts.append(stop)

    def _divide(self, *, at_end: bool) -> None:
        start = 0
        while size := self._next_size(start, at_end=at_end):
            self._add_shard(self.texts[start : start + size], self.positions[start])
            start += size
            if len(self.parts) < len(self.recorded) and self.part_rows == self.recorded[len(self.parts)].rows:
                self._end_part()
        del self.texts[:start], self.positions[:start], self.expected_bytes[:start]

    def _next_size(self, start: int, *, at_end: bool) -> int:
        """Return the size of the shard that starts at a row; 0 if more rows must be read first, or none are left."""
        rows = len(self.texts) - start
        if not rows:
            return 0
        if len(self.parts) < len(self.recorded):
            size = self.known_sizes[len(self.part_sizes)]
        else:
            if self.videos_per_shard is None:
                if rows <= _LARGEST_AUTOMATIC and not at_end:
                    return 0
                self.videos_per_shard = automatic_videos_per_shard(rows)
            size = self.videos_per_shard
            fitting = self._count_fitting(start, min(size, rows))
            if fitting < min(size, rows):
                return fitting
        return min(rows, size) if at_end or rows >= size else 0

    def _count_fitting(self, start: int, rows: int) -> int:
        """Return how many of some rows have fewer expected bytes than a shard may have, at least one."""
        left = (self.limits.shard_gb or DEFAULT_SHARD_GB) * 1e9
        for count, expected in enumerate(itertools.islice(self.expected_bytes, start, start + rows)):
            left -= expected
            if left < 0 and count:
                return count
        return rows

    def _add_shard(self, texts: Sequence[str], position: int) -> None:
        text = ",".join(texts).encode()
        self.digest.update(b"," + text if self.starts else text)
        self.hashes += hashlib.sha256(b"[" + text + b"]").digest()
        self.starts.append(position)
        self.first_rows.append(self.first_rows[-1] + len(texts))
        self.part_rows += len(texts)
        self.part_sizes.append(len(texts))

    def _end_part(self) -> None:
        complete = self.digest.copy()
        complete.update(b"]")
        if len(self.parts) < len(self.recorded):
            part = self.recorded[len(self.parts)]._replace(rows=self.part_rows, manifest_hash=complete.hexdigest())
        else:
            assert self.videos_per_shard is not None, "known after the first shard"
            gigabytes = self.limits.shard_gb or DEFAULT_SHARD_GB
            part = ManifestPart(self.part_rows, self.videos_per_shard, complete.hexdigest(), gigabytes)
            if list(part.sizes_of_shards()) != self.part_sizes.tolist():
                runs = itertools.groupby(self.part_sizes)
                part = part._replace(sizes=tuple((size, sum(1 for _ in run)) for size, run in runs))
        self.parts.append(part)
        self.part_rows, self.part_sizes, self.known_sizes = 0, array("q"), self._sizes_of_next()

    def _sizes_of_next(self) -> array[int]:
        """Return the sizes of the shards of the next recorded part."""
        following = self.recorded[len(self.parts) : len(self.parts) + 1]
        return array("q", (size for part in following for size in part.sizes_of_shards()))


def divide(
    source: Rows,
    recorded: Sequence[ManifestPart] = (),
    limits: ShardLimits = _NO_LIMITS,
    estimate: Estimate | None = None,
) -> Planned:
    """Divide a manifest into the rows of some parts, whatever their hashes, and a new part of the rows after those.

    The manifest is read once, as a stream.

    Args:
        source: the manifest.
        recorded: parts of an extraction.
        limits, estimate: see ``plan_shards``.

    Raises:
        ValueError: a limit is invalid.
        ManifestError: the manifest is invalid.
    """
    limits.check()
    planner, digest, stop = _Planner(recorded, limits, estimate), hashlib.sha256(), 0
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
    return Planned(plans, tuple(planner.parts), digest.hexdigest(), tuple(recorded), limits)


def plan_shards(
    source: Rows,
    recorded: Sequence[ManifestPart] = (),
    limits: ShardLimits = _NO_LIMITS,
    estimate: Estimate | None = None,
) -> Planned:
    """Divide a manifest into the rows that an extraction already has and a part of new rows, if any.

    Args:
        source: the manifest.
        recorded: the parts of the extraction so far.
        limits: limits of the shards of the new part. If there are no new rows, those that are not None replace the
            recorded ones of the last part, but not its division.
        estimate: returns the expected bytes of rows; None to close shards by their number of rows.

    Returns:
        The recorded parts, and a new one. If the manifest does not start with the recorded rows, one part of all rows.

    Raises:
        ValueError: a limit is invalid.
        ManifestError: the manifest is invalid.
    """
    planned = divide(source, recorded, limits, estimate)
    if planned.parts[: len(recorded)] != tuple(recorded):
        return divide(source, (), limits, estimate)
    if len(planned.parts) > len(recorded):
        return planned
    given = {name: value for name, value in limits._asdict().items() if value is not None}
    return planned._replace(parts=(*planned.parts[:-1], planned.parts[-1]._replace(**given)))
