"""What a run would do, told without doing it: nothing is written, no video is decoded.

How large the shards will be follows from those that are there already, or else from the headers of some videos and
from the bytes of a frame that were measured (``PLANNING.md``).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.source import frames_by_header
from cmd_extract.manifest.records import resolve_path
from cmd_extract.manifest.table import summarise
from cmd_extract.run.index import check_folder
from cmd_extract.run.job import RunJob
from cmd_extract.run.pipeline import divide_work
from cmd_extract.run.plan import ShardPlan, count_rows
from cmd_extract.schema import VideoRecord, grid_shape

MEASURED_JPEG_QUALITY = 3
_READ_HEADERS = 32
# Real videos, at that quality: small frames of 170 x 128 pixels, keyframes of 340 x 256, grids of 43 x 32 cells.
_SMALL_FRAME_BYTES_A_PIXEL = 5817 / (170 * 128)
_KEYFRAME_BYTES_A_PIXEL = 14711 / (340 * 256)
_MOTION_BYTES_A_CELL = 820 / (43 * 32)


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run would find and do.

    Attributes:
        rows, shards: of the manifest, or of this task's share of it.
        rows_done, shards_done: of finished shards, which would be left alone.
        missing: paths of videos to be extracted that are no files.
        read_headers: files to be extracted whose length their headers tell; of ``frames``, what these sum up to.
        frames: about how many frames would be extracted; None if no header tells.
        disk_bytes: about how much the shards to be made would take; None if nothing tells.
        measured_here: whether that follows from the finished shards.
        free_bytes: free space where the output folder is or would be.
    """

    rows: int
    shards: int
    rows_done: int
    shards_done: int
    missing: tuple[str, ...]
    read_headers: int
    frames: int | None
    disk_bytes: int | None
    measured_here: bool
    free_bytes: int

    def text(self, config: ExtractConfig) -> str:
        """A line for each thing worth knowing."""
        shards, rows = self.shards - self.shards_done, self.rows - self.rows_done
        lines = [
            f"manifest  {self.rows} videos in {self.shards} shards",
            f"done      {self.shards_done} shards, {self.rows_done} videos",
            f"to make   {shards} shards, {rows} videos",
        ]
        if self.missing:
            lines.append(f"missing   {summarise(self.missing, 'file')}; each would be a failure of stage open")
        if self.frames is not None:
            lines.append(f"frames    about {self.frames}, by the headers of {self.read_headers} files")
        if self.disk_bytes is not None:
            lines.append(f"disk      about {self.disk_bytes / 1e6:.1f} MB more{self._basis(config)}")
        lines.append(f"free      {self.free_bytes / 1e6:.1f} MB")
        return "\n".join([*lines, "nothing was written"])

    def _basis(self, config: ExtractConfig) -> str:
        if self.measured_here:
            return ", as the finished shards are"
        other = config.jpeg_quality != MEASURED_JPEG_QUALITY
        quality = f" with --jpeg-quality {MEASURED_JPEG_QUALITY}" if other else ""
        return f": {bytes_a_frame(config) / 1e3:.1f} kB a frame, as of real videos{quality}; textures take more"


def foresee(
    records: Sequence[VideoRecord],
    plans: Sequence[ShardPlan],
    mine: Sequence[ShardPlan],
    job: RunJob,
    retry_stages: frozenset[str] = frozenset(),
) -> DryRun:
    """Looks at what a run would look at before it begins.

    Args:
        records, plans: all manifest rows and shards.
        mine: the shards that the run would see to: all, or a task's share.
        job: folders and configuration.
        retry_stages: finished shards with failures of these stages would be made again.

    Raises:
        ShardError: the run would refuse the output folder.
        NotADirectoryError: the output folder is a file.
    """
    if job.out.exists() and not job.out.is_dir():
        raise NotADirectoryError(f"{job.out}: not a folder")
    check_folder(job, records, plans)
    done, todo = divide_work(mine, job, retry_stages=retry_stages)
    sources = [resolve_path(record, job.root) for plan in todo for record in plan.records]
    present = [path for path in sources if path.is_file()]
    read_headers, frames = _count_frames(present, job.config)
    rows_done, rows = count_rows(done), count_rows(mine)
    if done:
        size = sum((job.out / plan.name).stat().st_size for plan in done)
        disk: int | None = round(size / rows_done * (rows - rows_done))
    else:
        disk = None if frames is None else round(frames * bytes_a_frame(job.config))
    return DryRun(
        rows=rows,
        shards=len(mine),
        rows_done=rows_done,
        shards_done=len(done),
        missing=tuple(str(path) for path in sources if not path.is_file()),
        read_headers=read_headers,
        frames=frames,
        disk_bytes=disk,
        measured_here=bool(done),
        free_bytes=_free_bytes(job.out),
    )


def bytes_a_frame(config: ExtractConfig) -> float:
    """About how much of a shard a frame takes, its part of a keyframe included."""
    width, height = config.frame_size
    rows, columns = grid_shape(config.width, config.height, config.cell_px)
    small = width * height * _SMALL_FRAME_BYTES_A_PIXEL if config.store_frames else 0.0
    keyframe = config.width * config.height * _KEYFRAME_BYTES_A_PIXEL / config.gop
    return small + keyframe + rows * columns * _MOTION_BYTES_A_CELL


def _count_frames(paths: Sequence[Path], config: ExtractConfig) -> tuple[int, int | None]:
    """How many headers were read, evenly spread, and about how many frames all files have."""
    places = np.unique(np.linspace(0, len(paths) - 1, min(_READ_HEADERS, len(paths))).round().astype(int)).tolist()
    fps = Fraction(config.fps) if config.fps else None
    counts = [count for place in places if (count := frames_by_header(paths[place], fps)) is not None]
    return len(counts), round(sum(counts) / len(counts) * len(paths)) if counts else None


def _free_bytes(folder: Path) -> int:
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free
