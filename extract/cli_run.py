"""The command ``run``."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from extract.cli_cluster import ClusterOptions, cluster_options, print_task

if TYPE_CHECKING:
    from extract.index import RunSummary

EXIT_WITH_FAILURES = 3

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("manifest", type=_FILE)
@click.argument("out", type=_PATH)
@click.option("--root", type=_FOLDER, help="Folder that relative paths start from.  [default: the manifest's]")
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: all cores]")
@click.option("--size", default="340x256", metavar="WxH", help="Size of the canonical stream in pixels.")
@click.option("--codec", type=click.Choice(["mpeg4", "h264"]), default="mpeg4", help="Codec of the canonical stream.")
@click.option("--gop", type=int, default=12, help="Distance of I-frames in frames.")
@click.option("--quality", type=int, help="Quantiser of the canonical stream.  [default: 3 for mpeg4, 23 for h264]")
@click.option("--fps", help="Convert to this constant frame rate, e.g. 25 or 30000/1001.  [default: keep all frames]")
@click.option("--frame-short-side", type=int, default=128, help="Short side of the small frames in pixels.")
@click.option("--jpeg-quality", type=int, default=3, help="Quantiser of all JPEGs, 2 (best) to 31.")
@click.option("--cell", "cell_px", type=click.Choice(["8", "16"]), default="8", help="Motion grid cell in pixels.")
@click.option(
    "--transcode",
    type=click.Choice(["always", "auto", "never"]),
    default="always",
    help="Take vectors of a canonical stream (always), of the source (never), or of sources like a canonical stream.",
)
@click.option(
    "--reader", type=click.Choice(["auto", "pyav", "mvextractor"]), default="auto", help="What reads the vectors."
)
@click.option("--frames/--no-frames", "store_frames", default=True, help="Store the small frames training needs.")
@click.option("--segment-seconds", type=click.FloatRange(0, min_open=True), help="Cut videos into samples this long.")
@click.option("--videos-per-shard", type=click.IntRange(1), help="[default: about 32 shards, at most 256 videos each]")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=3600.0, help="Seconds one video may take.")
@click.option("--max-memory-mb", type=click.IntRange(64), default=4096, help="Memory one video may take, in MiB.")
@click.option("--max-failures", metavar="N|N%", help="Stop when more videos than this fail.  [default: never]")
@click.option(
    "--retry-failures",
    metavar="all|STAGE,...",
    help="Extract the finished shards again that hold failures of these stages (open, timeout, ...).",
)
@click.option("--scratch", type=_PATH, help="Folder for temporary files.  [default: OUT]")
@click.option("--ffmpeg", "ffmpeg_path", help="FFmpeg binary.  [default: the system's, else imageio-ffmpeg's]")
@cluster_options
def run(
    manifest: Path,
    out: Path,
    root: Path | None,
    workers: int | None,
    size: str,
    codec: str,
    gop: int,
    quality: int | None,
    fps: str | None,
    frame_short_side: int,
    jpeg_quality: int,
    cell_px: str,
    transcode: str,
    reader: str,
    store_frames: bool,
    segment_seconds: float | None,
    videos_per_shard: int | None,
    timeout: float,
    max_memory_mb: int,
    max_failures: str | None,
    retry_failures: str | None,
    scratch: Path | None,
    ffmpeg_path: str | None,
    cluster: ClusterOptions,
) -> None:
    r"""Extract the videos of MANIFEST into shards in the folder OUT.

    Started again, it continues. Every video is extracted in a process that may crash, hang or run out of memory
    without harm to the others.

    In a Slurm array job, or with --task and --num-tasks, it makes its share of the shards only; `cmd-extract status
    OUT` tells how far the tasks are, and `cmd-extract merge OUT` writes the index once all are done.

    \b
    Exit codes:
      0    all well (of a task of many: its share is complete, failed videos or not)
      1    another error (disk full, folder of another extraction, ...); one line explains
      2    wrong usage
      3    finished, but some videos failed: see OUT/failures.csv
      4    stopped, because more than --max-failures failed; finished shards and OUT/failures.csv stay
      130  interrupted (Ctrl-C or SIGTERM); the same command continues
    """
    import joblib

    from extract.claims import Claims
    from extract.config import ExtractConfig
    from extract.ffmpeg_binary import find_ffmpeg
    from extract.interrupts import interruptible
    from extract.job import RunJob
    from extract.limits import Limits, parse_failure_limit, parse_stages
    from extract.manifest import read_manifest
    from extract.motion import choose_reader
    from extract.pipeline import run_extraction
    from extract.plan import count_rows, plan_shards
    from extract.shares import allotted_cores
    from extract.source import STAGES
    from extract.task_run import run_share
    from extract.video import extract_video

    width, height = _parse_size(size)
    try:
        config = ExtractConfig(
            width=width,
            height=height,
            codec=codec,
            gop=gop,
            quality=quality,
            fps=fps,
            frame_short_side=frame_short_side,
            jpeg_quality=jpeg_quality,
            cell_px=int(cell_px),
            transcode=transcode,
            store_frames=store_frames,
            segment_seconds=segment_seconds,
        )
        stages = frozenset() if retry_failures is None else parse_stages(retry_failures, STAGES)
        reader = choose_reader(reader)
        if reader == "mvextractor" and transcode != "always":
            raise ValueError("reader: mvextractor reads canonical streams only, which needs transcode always")
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    root = root or manifest.parent
    # A file that is missing is found out, named and counted when its turn comes; one lost file ends no long run.
    records = read_manifest(manifest, root=root, check_paths=False)
    try:
        share = cluster.share(os.environ)
        if share and stages:
            # Tasks tell what is left to do by which shards are there; a retry makes some of those again.
            raise ValueError("--retry-failures: not in a task of many; run it once, alone, after `cmd-extract merge`")
        rows = count_rows(share.of(plan_shards(records, videos_per_shard))) if share else len(records)
        allowed = None if max_failures is None else parse_failure_limit(max_failures, rows)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    limits = Limits(timeout_seconds=timeout, max_memory_mb=max_memory_mb)
    binary = find_ffmpeg(ffmpeg_path)
    job = RunJob(
        root=root, out=out, scratch=scratch or out, config=config, binary=binary, limits=limits, manifest=manifest
    )
    click.echo(f"{share or 'all'}: {rows} videos; {binary.version} ({binary.path})", err=True)
    workers = workers or allotted_cores(os.environ, joblib.cpu_count())
    extract = partial(extract_video, reader=reader)
    with interruptible():
        if share:
            task = run_share(
                records,
                job,
                share,
                workers=workers,
                claims=Claims(out=out, stale_seconds=cluster.stale_after),
                videos_per_shard=videos_per_shard,
                max_failures=allowed,
                extract=extract,
            )
            print_task(task, share, out)
            return
        summary = run_extraction(
            records,
            job,
            workers=workers,
            videos_per_shard=videos_per_shard,
            max_failures=allowed,
            extract=extract,
            spread=cluster.spread(workers),
            retry_stages=stages,
        )
    _print_summary(summary, out)
    if summary.failures:
        raise SystemExit(EXIT_WITH_FAILURES)


def _parse_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise click.BadParameter(f"{text!r} is not a size such as 340x256", param_hint="--size")
    return int(width), int(height)


def _print_summary(summary: RunSummary, out: Path) -> None:
    rate = summary.new_frames / summary.seconds if summary.seconds else 0.0
    click.echo(f"videos    {summary.videos} ({summary.new_videos} in this run)")
    click.echo(f"frames    {summary.frames} ({rate:.0f} a second in this run)")
    click.echo(f"failures  {summary.failures}" + (f", listed in {out / 'failures.csv'}" if summary.failures else ""))
    if summary.damaged:
        click.echo(f"damaged   {summary.damaged}, extracted as far as they decode, listed in {out / 'damaged.csv'}")
    click.echo(f"shards    {summary.shards}, {summary.size_bytes / 1e6:.1f} MB, in {out}")
