"""The command ``run``."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmd_extract.cli import options
from cmd_extract.cli.publish import publish_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cmd_extract.cli.run_options import ClusterOptions, RunOptions
    from cmd_extract.cluster.task import TaskSummary
    from cmd_extract.run.job import RunJob
    from cmd_extract.run.pipeline import BuildSettings
    from cmd_extract.run.plan import ShardPlan, Share
    from cmd_extract.run.record import RunSummary


@click.command(short_help="Extract videos into shards.")
@click.argument("manifest", type=options.EXISTING_FILE)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--root",
    type=options.RootFolder(),
    help="Folder, or URL prefix, to which paths in the manifest are relative.  [default: the manifest's folder]",
)
@options.workers
@click.option(
    "--size",
    default="340x256",
    metavar="WxH",
    help="Size of the canonical stream in pixels, even numbers from 32 to 4096.",
)
@click.option("--codec", type=click.Choice(["mpeg4", "h264"]), default="mpeg4", help="Codec of the canonical stream.")
@click.option("--gop", type=int, default=12, help="Distance between I-frames in frames, 1 to 600.")
@click.option(
    "--quality",
    type=int,
    help="Quantizer (mpeg4, 1 to 31) or rate factor (h264, 1 to 51) of the canonical stream; lower is better."
    "  [default: 3 for mpeg4, 23 for h264]",
)
@click.option(
    "--fps",
    metavar="RATE",
    help="Convert to this constant frame rate, such as 25 or 30000/1001.  [default: keep all frames]",
)
@click.option(
    "--frame-short-side", type=int, default=128, help="Short side of the small frames in pixels, at least 16."
)
@click.option("--jpeg-quality", type=int, default=3, help="Quantizer of all JPEGs, 2 (best) to 31.")
@click.option("--cell", "cell_px", type=click.Choice(["8", "16"]), default="8", help="Motion grid cell in pixels.")
@click.option(
    "--transcode",
    type=click.Choice(["always", "auto", "never"]),
    default="always",
    help="Read motion vectors from a transcoded canonical stream (always), from the source (never), or from the source "
    "where it is equivalent to a canonical stream (auto).",
)
@click.option(
    "--reader", type=click.Choice(["auto", "pyav", "mvextractor"]), default="auto", help="Reader of motion vectors."
)
@click.option("--frames/--no-frames", "store_frames", default=True, help="Store the small frames, needed for training.")
@click.option(
    "--segment-seconds",
    type=options.Seconds(),
    help="Cut videos into segments of this length in seconds.  [default: keep videos whole]",
)
@click.option(
    "--videos-per-shard",
    type=click.IntRange(1),
    help="Manifest rows per shard, at most.  [default: 1/32 of all rows, at most 256]",
)
@click.option(
    "--shard-gb",
    type=float,
    help="Expected size per shard in GB, at most; four times the size of the local source files.  [default: 4]",
)
@options.timeout
@options.max_memory
@options.source_limits
@click.option(
    "--max-failures", metavar="N|N%", help="Stop when more videos than this have failed.  [default: no limit]"
)
@click.option(
    "--retry-failures",
    metavar="all|STAGE,...",
    help="Extract finished shards again if they have failures of these stages, such as open,timeout.  [default: none]",
)
@options.scratch
@options.ffmpeg
@options.publish
@options.accept_ffmpeg
@click.option("--dry-run", is_flag=True, help="Show the plan and the estimated size; write nothing.")
@click.option("--task", type=click.IntRange(0), help="Build this task's share of the shards first, with --num-tasks.")
@click.option("--num-tasks", type=click.IntRange(1), help="Total number of tasks.  [default with --array: its size]")
@click.option("--array", is_flag=True, help="Build the share of this task of the Slurm job array first.")
@options.stale_after
@click.option("--backend", type=click.Choice(["local", "dask"]), default="local", help="Where to build shards.")
@click.option(
    "--scheduler", metavar="ADDRESS", help="Address of the Dask scheduler.  [default: start workers on this machine]"
)
@click.option("--scheduler-file", type=options.EXISTING_FILE, help="File with the Dask scheduler's address.")
def run(
    manifest: Path,
    out: Path,
    workers: int | None,
    scratch: Path | None,
    ffmpeg_path: str | None,
    dry_run: bool,
    **given: Any,
) -> None:
    """Extract the videos of MANIFEST into shards in the folder OUT.

    Run the same command again to continue an interrupted extraction, or to add the videos of new rows at the end of
    MANIFEST. Every video is extracted in a separate process; a crash, hang or out-of-memory error there does not affect
    other videos.

    With --array in a Slurm job array, or with --task and --num-tasks, this process is one of several: it builds its
    share of the shards, then any others that no task has begun. `cmd-extract status OUT` shows the progress of all
    tasks; `cmd-extract merge OUT` writes the index once they are finished.

    \b
    Exit codes:
      0    success (for one of several tasks: its share is complete)
      1    error, explained in one line (disk full, OUT contains another extraction, ...)
      2    wrong usage
      3    finished, but some videos failed; OUT/failures.csv lists them
      4    stopped, because more videos than --max-failures failed
      130  interrupted (Ctrl-C or SIGTERM); run the same command again to continue
    """  # noqa: D301 - a raw string would show the \b by which click keeps line breaks
    from cmd_extract.cli.run_options import parse_cluster_options, parse_run_options
    from cmd_extract.cluster.shares import is_array_task
    from cmd_extract.decode.ffmpeg import find_ffmpeg
    from cmd_extract.run.plan import count_rows
    from cmd_extract.run.record import accept_ffmpeg
    from cmd_extract.run.workers import default_workers

    workers = workers or default_workers()
    cluster = parse_cluster_options(given, os.environ, workers)
    requested = parse_run_options(manifest, out, given)
    plans = cluster.share.of(requested.planned.plans) if cluster.share else requested.planned.plans
    rows = count_rows(plans)
    binary = find_ffmpeg(ffmpeg_path)
    try:
        job = accept_ffmpeg(requested.job(out, scratch, binary), given["accept_ffmpeg"])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"{cluster.share or 'all shards'}: {rows} videos; {binary.version} ({binary.path})", err=True)
    if cluster.share is None and is_array_task(os.environ):
        click.echo(
            "note: this task of a Slurm job array builds all shards; with --array, the tasks share them", err=True
        )
    if dry_run:
        _show_plan(requested, plans, job)
        return
    settings = _build_settings(requested, cluster, workers, out, given["max_failures"], rows)
    _extract(requested, job, cluster.share, settings, given["publish"])


def _build_settings(
    requested: RunOptions, cluster: ClusterOptions, workers: int, out: Path, max_failures: str | None, rows: int
) -> BuildSettings:
    from cmd_extract.cli.run_options import parse_failure_limit
    from cmd_extract.decode.video import extract_video
    from cmd_extract.run.pipeline import BuildSettings
    from cmd_extract.system.claims import Claims

    # A share may be empty, and its task then only helps others.
    limit = None if max_failures is None else parse_failure_limit(max_failures, rows or requested.planned.rows)
    return BuildSettings(
        workers=workers,
        max_failures=limit,
        extract=partial(extract_video, reader=requested.reader),
        claims=Claims(out=out, stale_seconds=cluster.stale_after),
        backend=cluster.backend,
        retry_stages=requested.retry_stages,
    )


def _extract(
    requested: RunOptions, job: RunJob, share: Share | None, settings: BuildSettings, publish: str | None
) -> None:
    """Build the shards, the task's share of them first, and print a summary; exit with 3 if videos failed."""
    from cmd_extract.cluster.task import run_task
    from cmd_extract.run.pipeline import run_extraction
    from cmd_extract.run.publish import ShardUploader
    from cmd_extract.shard.index import find_indexes
    from cmd_extract.system.signals import interruptible

    if share:
        with interruptible():
            task = run_task(requested.planned, job, share, settings)
        _print_task(task, share, job.out)
        return
    with interruptible(), contextlib.ExitStack() as stack:
        if publish is not None:
            warn = partial(click.echo, err=True)
            uploader = stack.enter_context(ShardUploader(job.out, publish, job.limits.sources, warn))
            settings = replace(settings, on_finished=lambda shard: uploader.add(shard.name, shard.written.sha256))
        before = find_indexes(job.out)
        summary = run_extraction(requested.planned, job, settings)
    _print_summary(summary, job.out)
    options.print_relabeling(before, job.out, requested.manifest)
    if publish is not None:
        publish_folder(job.out, publish, job.limits.sources)
    if summary.failures:
        raise SystemExit(options.EXIT_SOME_FAILED)


def _show_plan(requested: RunOptions, plans: Sequence[ShardPlan], job: RunJob) -> None:
    from cmd_extract.run.dry_run import dry_run

    plan = dry_run(requested.planned, plans, job, requested.retry_stages)
    # File names need not be UTF-8.
    click.echo(plan.text(job.config).encode("utf-8", "backslashreplace"))


def _print_summary(summary: RunSummary, out: Path) -> None:
    from cmd_extract.shard.summary import count_notes

    rate = summary.new_frames / summary.seconds if summary.seconds else 0.0
    click.echo(f"videos    {summary.videos} ({summary.new_videos} in this run)")
    click.echo(f"frames    {summary.frames} ({rate:.0f} frames/s in this run)")
    click.echo(f"failures  {summary.failures}" + (f", listed in {out / 'failures.csv'}" if summary.failures else ""))
    if summary.damaged:
        click.echo(f"damaged   {summary.damaged}, extracted as far as possible, listed in {out / 'damaged.csv'}")
    if count := count_notes(out):
        click.echo(f"notes     {count}, listed in {out / 'notes.csv'}")
    click.echo(f"shards    {summary.shards}, {summary.size_bytes / 1e6:.1f} MB, in {out}")
    click.echo(f"Next: cmd-train pretrain {out} RUN_DIR", err=True)


def _print_task(summary: TaskSummary, share: Share, out: Path) -> None:
    rate = summary.frames / summary.seconds if summary.seconds else 0.0
    click.echo(f"{share} is complete")
    helped = f" ({summary.helped} for other tasks)" if summary.helped else ""
    click.echo(f"shards    {summary.shards} built{helped}, {summary.existing} existing or built by other tasks")
    click.echo(f"videos    {summary.videos} extracted, {summary.failures} failed; {rate:.0f} frames/s")
    if summary.damaged:
        click.echo(f"damaged   {summary.damaged}, extracted as far as possible; `merge` lists them in damaged.csv")
    click.echo(f"once all tasks are complete, run `cmd-extract merge {out}` to write the index")
