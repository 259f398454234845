"""Output folders of any size for measurements of bookkeeping: real manifests, logs and shards, of one tiny video each.

Extracting ten million videos takes weeks. Here each shard is a hard link to one of a few shards that the real writer
has written, and its rows are recorded in a real log, so that every command finds a finished extraction.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.source import SourceInfo
from cmd_extract.decode.stamps import FrameTimes
from cmd_extract.decode.video import ExtractedVideo
from cmd_extract.run.finished import FinishedShard, describe_shard
from cmd_extract.run.job import RunJob
from cmd_extract.run.plan import ShardPlan, Share
from cmd_extract.run.task_log import TaskLog
from cmd_extract.schema import VideoRecord
from cmd_extract.shard.writer import ShardWriter

CONFIG = ExtractConfig(width=64, height=48, frame_short_side=24)
_MAX_LINKS = 30_000  # ext4 allows 65,000 names per file
_TEMPLATE = "template.h5"
_JPEG = b"\xff\xd8\xff\xd9"


def manifest_lines(videos: int) -> Iterator[str]:
    yield "id,path,label,split\n"
    for row in range(videos):
        yield f"video-{row:09d},folder/video-{row:09d}.mp4,class {row % 400},{'test' if row % 10 == 0 else 'train'}\n"


def write_manifest(path: Path, videos: int) -> Path:
    with path.open("w") as stream:
        stream.writelines(manifest_lines(videos))
    return path


def make_job(folder: Path, manifest: Path) -> RunJob:
    out = folder / "out"
    binary = FfmpegBinary(path="", version="ffmpeg version fake")
    return RunJob(root=folder, out=out, scratch=out, config=CONFIG, binary=binary, manifest=manifest)


def fake_video(folder: Path, frames: int = 2) -> ExtractedVideo:
    """Return a video of a few frames, with files of the smallest size."""
    folder.mkdir(parents=True)
    rows, columns = -(-CONFIG.height // CONFIG.cell_px), -(-CONFIG.width // CONFIG.cell_px)
    contents = {
        "frames": _JPEG * frames,
        "keyframes": _JPEG,
        "grid": bytes(frames * 4 * rows * columns),
        "valid": bytes(frames * rows * columns),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    source = SourceInfo(
        stream_index=0, codec="h264", width=320, height=240, declared_frames=0, fps=25.0, fingerprint="0" * 64,
        file_bytes=9,
    )  # fmt: skip
    return ExtractedVideo(
        source=source,
        frame_jpeg=folder / "frames",
        frame_sizes=np.full(frames, len(_JPEG)),
        times=FrameTimes(ticks=np.arange(frames), time_base=Fraction(1, 25)),
        frame_types=np.array([b"I", *[b"P"] * (frames - 1)], "S1"),
        keyframe_jpeg=folder / "keyframes",
        keyframe_sizes=np.array([len(_JPEG)]),
        keyframe_indices=np.array([0]),
        grid=folder / "grid",
        valid=folder / "valid",
    )


def write_shard(path: Path, job: RunJob, plan: ShardPlan, frames: int = 2) -> FinishedShard:
    """Write a shard of the rows of a plan with tiny videos."""
    scratch = path.parent / "scratch"
    scratch.mkdir(parents=True)
    writer = ShardWriter(
        path, workdir=scratch, config=job.config, described=job.described, software={}, rows_hash=plan.rows_hash
    )
    for record in plan.read_records():
        writer.add_video(record, fake_video(scratch / f"video-{record.row}", frames))
    written = writer.finish()
    shutil.rmtree(scratch)
    return describe_shard(path, written)


def write_template(job: RunJob, videos: int, frames: int = 2) -> FinishedShard:
    """Write a shard of ``videos`` videos to link to, under a name that no run looks for."""
    records = tuple(VideoRecord(row=i, video_id=f"video-{i:09d}", path=f"{i}.mp4") for i in range(videos))
    path = job.out / _TEMPLATE
    path.unlink(missing_ok=True)
    return write_shard(path, job, ShardPlan.of(0, records), frames)


def fake_shard(job: RunJob, videos: int, frames: int) -> Path:
    """Write one shard and return its path."""
    return job.out / write_template(job, videos, frames).name


def link_shards(job: RunJob, plans: Iterator[ShardPlan], videos_per_shard: int) -> None:
    """Create the files of the shards as links, and the log of a task that has built them."""
    template = write_template(job, videos_per_shard)
    with TaskLog(job.out, Share(task=0, num_tasks=1)) as log:
        for number, plan in enumerate(plans):
            count = len(plan.rows)
            if count != template.written.videos or number % _MAX_LINKS == _MAX_LINKS - 1:
                template = write_template(job, count)
            os.link(job.out / _TEMPLATE, job.out / plan.name)
            rows = np.array(plan.rows)
            written = replace(template.written, name=plan.name)
            log.add(replace(template, written=written, rows=rows, rows_hash=plan.rows_hash))
    (job.out / _TEMPLATE).unlink()
