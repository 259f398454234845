"""The command ``run``."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmd_extract.cli.cluster import ClusterOptions, cluster_options, print_task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cmd_extract.cli.options import RunOptions
    from cmd_extract.cluster.shares import Share
    from cmd_extract.run.index import RunSummary
    from cmd_extract.run.job import RunJob
    from cmd_extract.run.plan import ShardPlan

EXIT_WITH_FAILURES = 3

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(short_help="Extract videos into shards.")
@click.argument("manifest", type=_FILE)
@click.argument("out", type=_PATH)
@click.option("--root", type=_FOLDER, help="Folder that relative paths start from.  [default: the manifest's]")
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: all cores it may use]")
@click.option(
    "--size",
    default="340x256",
    metavar="WxH",
    help="Size of the canonical stream in pixels, even numbers from 32 to 4096.",
)
@click.option("--codec", type=click.Choice(["mpeg4", "h264"]), default="mpeg4", help="Codec of the canonical stream.")
@click.option("--gop", type=int, default=12, help="Distance of I-frames in frames, 1 to 600.")
@click.option(
    "--quality",
    type=int,
    help="Quantiser (mpeg4, 1 to 31) or rate factor (h264, 1 to 51) of the canonical stream; lower is better."
    "  [default: 3 for mpeg4, 23 for h264]",
)
@click.option(
    "--fps",
    metavar="RATE",
    help="Convert to this constant frame rate, e.g. 25 or 30000/1001.  [default: keep all frames]",
)
@click.option("--frame-short-side", type=int, default=128, help="Short side of the small frames in pixels, from 16.")
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
@click.option(
    "--segment-seconds",
    type=click.FloatRange(0, min_open=True),
    help="Cut videos into samples this long.  [default: no]",
)
@click.option(
    "--videos-per-shard", type=click.IntRange(1), help="Manifest rows a shard.  [default: a 32nd of all, at most 256]"
)
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=3600.0, help="Seconds one video may take.")
@click.option("--max-memory-mb", type=click.IntRange(64), default=4096, help="Memory one video may take, in MiB.")
@click.option("--max-failures", metavar="N|N%", help="Stop when more videos than this fail.  [default: never]")
@click.option(
    "--retry-failures",
    metavar="all|STAGE,...",
    help="Extract the finished shards again that hold failures of these stages (open, timeout, ...).  [default: none]",
)
@click.option("--scratch", type=_PATH, help="Folder for temporary files.  [default: OUT]")
@click.option(
    "--ffmpeg",
    "ffmpeg_path",
    metavar="FILE",
    help="FFmpeg binary, 5.1 or newer.  [default: the system's, else imageio-ffmpeg's]",
)
@click.option("--dry-run", is_flag=True, help="Tell what would be made, from which videos, how large; write nothing.")
@cluster_options
def run(
    manifest: Path,
    out: Path,
    workers: int | None,
    max_failures: str | None,
    scratch: Path | None,
    ffmpeg_path: str | None,
    dry_run: bool,
    cluster: ClusterOptions,
    **given: Any,
) -> None:
    """Extract the videos of MANIFEST into shards in the folder OUT.

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
    """  # noqa: D301 - a raw string would show the sign by which click keeps lines apart
    from cmd_extract.cli.options import read_options
    from cmd_extract.decode.ffmpeg import find_ffmpeg
    from cmd_extract.run.limits import parse_failure_limit
    from cmd_extract.run.plan import count_rows

    asked = read_options(manifest, given | {"max_failures": max_failures})
    share = _find_share(cluster, asked)
    mine = share.of(asked.plans) if share else asked.plans
    rows = count_rows(mine)
    allowed = None if max_failures is None else parse_failure_limit(max_failures, rows)
    binary = find_ffmpeg(ffmpeg_path)
    job = asked.job(out, scratch, binary)
    click.echo(f"{share or 'all'}: {rows} videos; {binary.version} ({binary.path})", err=True)
    if dry_run:
        _foresee(asked, mine, job)
    else:
        _extract(asked, job, cluster, share, workers, videos_per_shard=given["videos_per_shard"], max_failures=allowed)


def _find_share(cluster: ClusterOptions, asked: RunOptions) -> Share | None:
    try:
        share = cluster.share(os.environ)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if share and asked.retry_stages:
        # Tasks tell what is left to do by which shards are there; a retry makes some of those again.
        raise click.UsageError("--retry-failures: not in a task of many; run it once, alone, after `cmd-extract merge`")
    return share


def _extract(
    asked: RunOptions, job: RunJob, cluster: ClusterOptions, share: Share | None, workers: int | None, **limits: Any
) -> None:
    """Makes the shards, or the share of them; says what became of it, and exits with 3 if videos failed."""
    from cmd_extract.cluster.claims import Claims
    from cmd_extract.cluster.task import run_share
    from cmd_extract.decode.video import extract_video
    from cmd_extract.run.pipeline import run_extraction
    from cmd_extract.run.workers import default_workers
    from cmd_extract.system.signals import interruptible

    workers = workers or default_workers()
    common = limits | {"workers": workers, "extract": partial(extract_video, reader=asked.reader)}
    with interruptible():
        if share:
            claims = Claims(out=job.out, stale_seconds=cluster.stale_after)
            print_task(run_share(asked.records, job, share, claims=claims, **common), share, job.out)
            return
        spread = cluster.spread(workers)
        summary = run_extraction(asked.records, job, spread=spread, retry_stages=asked.retry_stages, **common)
    _print_summary(summary, job.out)
    if summary.failures:
        raise SystemExit(EXIT_WITH_FAILURES)


def _foresee(asked: RunOptions, mine: Sequence[ShardPlan], job: RunJob) -> None:
    from cmd_extract.run.dry_run import foresee

    found = foresee(asked.records, asked.plans, mine, job, asked.retry_stages)
    # Names of files need not be UTF-8.
    click.echo(found.text(job.config).encode("utf-8", "backslashreplace"))


def _print_summary(summary: RunSummary, out: Path) -> None:
    rate = summary.new_frames / summary.seconds if summary.seconds else 0.0
    click.echo(f"videos    {summary.videos} ({summary.new_videos} in this run)")
    click.echo(f"frames    {summary.frames} ({rate:.0f} a second in this run)")
    click.echo(f"failures  {summary.failures}" + (f", listed in {out / 'failures.csv'}" if summary.failures else ""))
    if summary.damaged:
        click.echo(f"damaged   {summary.damaged}, extracted as far as they decode, listed in {out / 'damaged.csv'}")
    click.echo(f"shards    {summary.shards}, {summary.size_bytes / 1e6:.1f} MB, in {out}")
