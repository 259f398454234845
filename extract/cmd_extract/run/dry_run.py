"""Dry run: shows what a run would do and estimates its size. Nothing is written and no video is decoded.

The size is estimated from the finished shards; if there are none, from the headers of some videos and from measured
bytes per frame (``PLANNING.md``).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.source import estimate_frame_count
from cmd_extract.manifest.records import resolve_path
from cmd_extract.manifest.table import summarize
from cmd_extract.run.job import RunJob
from cmd_extract.run.plan import Planned, ShardPlan, count_rows, read_each
from cmd_extract.run.record import RunIdentity, check_folder
from cmd_extract.run.state import read_state
from cmd_extract.schema import grid_shape
from cmd_extract.sources.access import is_remote, problem_of

_MEASURED_JPEG_QUALITY = 3
_MAX_HEADERS = 32
# Measured on real videos at that quality: frames of 170 x 128 pixels, keyframes of 340 x 256, grids of 43 x 32 cells.
_FRAME_BYTES_PER_PIXEL = 5817 / (170 * 128)
_KEYFRAME_BYTES_PER_PIXEL = 14711 / (340 * 256)
_MOTION_BYTES_PER_CELL = 820 / (43 * 32)


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """Plan of a run.

    Attributes:
        rows, shards: numbers of rows and shards of the manifest, or of this task's share.
        rows_done, shards_done: those of the finished shards, which would be kept.
        missing: videos to extract that are neither files nor members of a tar file.
        remote: number of remote videos to extract, which are not looked for.
        headers: number of headers read for ``frames``.
        frames: estimated number of frames to extract; None if no header states one.
        disk_bytes: estimated size of the shards to build; None if unknown.
        from_shards: whether that estimate follows from the finished shards.
        free_bytes: free disk space at the output folder.
    """

    rows: int
    shards: int
    rows_done: int
    shards_done: int
    missing: tuple[str, ...]
    remote: int
    headers: int
    frames: int | None
    disk_bytes: int | None
    from_shards: bool
    free_bytes: int

    def text(self, config: ExtractConfig) -> str:
        """Format the plan for the user, one line per item."""
        shards, rows = self.shards - self.shards_done, self.rows - self.rows_done
        lines = [
            f"manifest  {self.rows} videos in {self.shards} shards",
            f"finished  {self.shards_done} shards, {self.rows_done} videos",
            f"to do     {shards} shards, {rows} videos",
        ]
        if self.missing:
            lines.append(f"missing   {summarize(self.missing, 'file')}; each would fail in stage open")
        if self.remote:
            lines.append(f"remote    {self.remote} videos, not checked")
        if self.frames is not None:
            lines.append(f"frames    about {self.frames}, from the headers of {self.headers} files")
        if self.disk_bytes is not None:
            lines.append(f"disk      about {self.disk_bytes / 1e6:.1f} MB more{self._basis(config)}")
        lines.append(f"free      {self.free_bytes / 1e6:.1f} MB")
        return "\n".join([*lines, "nothing was written"])

    def _basis(self, config: ExtractConfig) -> str:
        if self.from_shards:
            return ", from the size of the finished shards"
        changed = config.jpeg_quality != _MEASURED_JPEG_QUALITY
        quality = f" at --jpeg-quality {_MEASURED_JPEG_QUALITY}" if changed else ""
        return f": {_bytes_per_frame(config) / 1e3:.1f} kB per frame as for natural videos{quality}; textures need more"


def dry_run(
    planned: Planned,
    share: Sequence[ShardPlan],
    job: RunJob,
    retry_stages: frozenset[str] = frozenset(),
) -> DryRun:
    """Make the checks and the plan of a run.

    Args:
        planned: all shards.
        share: shards that the run would build: all, or a task's share.
        job: settings of the run.
        retry_stages: finished shards with failures of these stages would be built again.

    Raises:
        ShardError: the output folder contains another extraction, or sources have changed.
        NotADirectoryError: the output folder is a file.
    """
    check_folder(job, RunIdentity.of(job, planned))
    state = read_state(share, job, retry_stages=retry_stages)
    state.check_sources()
    sources = [resolve_path(record, job.root) for records in read_each(state.todo) for record in records]
    problems = [problem_of(source) for source in sources]
    missing = [str(source) for source, problem in zip(sources, problems, strict=True) if problem]
    local = [s for s, problem in zip(sources, problems, strict=True) if isinstance(s, Path) and not problem]
    headers, frames = _estimate_frames(local, len(sources) - len(missing), job.config)
    rows_done, rows = count_rows(state.done), count_rows(share)
    if state.done:
        size = sum((job.out / plan.name).stat().st_size for plan in state.done)
        disk_bytes: int | None = round(size / rows_done * (rows - rows_done))
    else:
        disk_bytes = None if frames is None else round(frames * _bytes_per_frame(job.config))
    return DryRun(
        rows=rows,
        shards=len(share),
        rows_done=rows_done,
        shards_done=len(state.done),
        missing=tuple(missing),
        remote=sum(map(is_remote, sources)),
        headers=headers,
        frames=frames,
        disk_bytes=disk_bytes,
        from_shards=bool(state.done),
        free_bytes=_free_bytes(job.out),
    )


def _bytes_per_frame(config: ExtractConfig) -> float:
    """Estimate the bytes of a shard per frame, including its part of a keyframe."""
    width, height = config.frame_size
    rows, columns = grid_shape(config.width, config.height, config.cell_px)
    frame = width * height * _FRAME_BYTES_PER_PIXEL if config.store_frames else 0.0
    keyframe = config.width * config.height * _KEYFRAME_BYTES_PER_PIXEL / config.gop
    return frame + keyframe + rows * columns * _MOTION_BYTES_PER_CELL


def _estimate_frames(paths: Sequence[Path], videos: int, config: ExtractConfig) -> tuple[int, int | None]:
    """Return the number of headers read, of evenly spaced files, and the estimated number of frames of all videos."""
    indices = np.unique(np.linspace(0, len(paths) - 1, min(_MAX_HEADERS, len(paths))).round().astype(int)).tolist()
    fps = Fraction(config.fps) if config.fps else None
    counts = [count for i in indices if (count := estimate_frame_count(paths[i], fps)) is not None]
    return len(counts), round(sum(counts) / len(counts) * videos) if counts else None


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(existing).free
