"""The commands ``verify``, ``inspect`` and ``preview``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cmd_extract.run.limits import Limits
    from cmd_extract.run.record import RecordedRun
    from cmd_extract.shard.verify import Problem

_EXIT_DAMAGED = 1
_SHARDS = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(short_help="Prove that an output is whole; repair it.")
@click.argument("out", type=_SHARDS)
@click.option("--repair", is_flag=True, help="Extract damaged shards, and those of changed sources, again.")
@click.option("--quick", is_flag=True, help="Do not decode the JPEGs; checksums and all else are still checked.")
@click.option("--sources/--no-sources", default=True, help="Compare the source files with their fingerprints.")
@click.option("--manifest", type=_FILE, help="The manifest, if it was moved.  [default: where the run found it]")
@click.option("--root", type=_SHARDS, help="Folder of the videos, if they were moved.  [default: that of the run]")
@click.option("--workers", type=click.IntRange(1), help="Processes for --repair.  [default: all cores it may use]")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=3600.0, help="Seconds one video may take.")
@click.option("--max-memory-mb", type=click.IntRange(64), default=4096, help="Memory one video may take, in MiB.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for temporary files.  [default: OUT]")
@click.option(
    "--ffmpeg",
    "ffmpeg_path",
    metavar="FILE",
    help="FFmpeg binary for --repair, of the run's version.  [default: the system's, else imageio-ffmpeg's]",
)
def verify(
    out: Path,
    repair: bool,
    quick: bool,
    sources: bool,
    manifest: Path | None,
    root: Path | None,
    workers: int | None,
    timeout: float,
    max_memory_mb: int,
    scratch: Path | None,
    ffmpeg_path: str | None,
) -> None:
    """Check checksums, counts, offsets, JPEGs, grids and sources of the extraction OUT; name what is damaged.

    Exit code 0: all well (or all is well after --repair); 1: something is damaged.
    """
    from cmd_extract.manifest.records import resolve_path
    from cmd_extract.run.limits import Limits
    from cmd_extract.run.progress import CountReport
    from cmd_extract.run.record import read_recorded_run
    from cmd_extract.shard.verify import verify_folder

    recorded = read_recorded_run(out, manifest, root, to_write=repair) if sources or repair else None

    def check() -> list[Problem]:
        with CountReport("verify", "shards") as report:
            return verify_folder(
                out,
                decode=not quick,
                sources=recorded.records if recorded and sources else None,
                resolve=lambda record: resolve_path(record, recorded.root) if recorded else Path(),
                progress=report.update,
            )

    found = check()
    for damage in found:
        click.echo(damage.what)
    if found and repair and recorded is not None:
        limits = Limits(timeout_seconds=timeout, max_memory_mb=max_memory_mb)
        _repair(out, recorded, {d.shard for d in found if d.shard is not None}, workers, limits, scratch, ffmpeg_path)
        found = check()
        for damage in found:
            click.echo(f"still: {damage.what}")
    if found:
        click.echo(f"{len(found)} problems" + ("" if repair else "; --repair extracts these shards again"), err=True)
        raise SystemExit(_EXIT_DAMAGED)
    click.echo(f"{out}: all well")


def _repair(
    out: Path,
    recorded: RecordedRun,
    shards: set[int],
    workers: int | None,
    limits: Limits,
    scratch: Path | None,
    ffmpeg_path: str | None,
) -> None:
    from cmd_extract.decode.ffmpeg import find_ffmpeg
    from cmd_extract.run.job import RunJob
    from cmd_extract.run.pipeline import run_extraction
    from cmd_extract.run.workers import default_workers
    from cmd_extract.schema import SHARD_PATTERN
    from cmd_extract.system.signals import interruptible

    job = RunJob(
        root=recorded.root,
        out=out,
        scratch=scratch or out,
        config=recorded.config,
        binary=find_ffmpeg(ffmpeg_path),
        limits=limits,
        manifest=recorded.manifest,
    )
    click.echo(f"extracting {len(shards)} shards again", err=True)
    with interruptible():
        run_extraction(
            recorded.records,
            job,
            workers=workers or default_workers(),
            videos_per_shard=recorded.videos_per_shard,
            redo=frozenset(SHARD_PATTERN.format(number) for number in shards),
        )


@click.command(short_help="Show what an output holds, in numbers.")
@click.argument("out", type=_SHARDS)
def inspect(out: Path) -> None:
    """Show what the extraction OUT holds: totals, sizes, codecs, vectors."""
    from cmd_extract.shard.summary import describe_folder

    for name, value in describe_folder(out):
        click.echo(f"{name:<14} {value}")


@click.command(short_help="Draw a video, its keyframes and motion.")
@click.argument("out", type=_SHARDS)
@click.option("--video", required=True, help="Id of the video, as in the manifest.")
@click.option(
    "--output",
    "--to",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("preview.png"),
    help="File to write: .png, .jpg, or .gif for an animation.",
)
@click.option("--start", type=click.IntRange(0), default=0, help="First frame.")
@click.option("--frames", type=click.IntRange(1), default=16, help="Number of frames.")
def preview(out: Path, video: str, target: Path, start: int, frames: int) -> None:
    """Draw a video of the extraction OUT: keyframe, frames with vectors as arrows, motion as colours, validity.

    The file is a picture of four of the frames, or an animation (.gif) of all.
    """
    from cmd_extract.shard.preview import draw_preview
    from cmd_extract.shard.reader import ShardSet

    shards = ShardSet(out)
    entry = next((v for v in shards.videos if v.video_id == video), None)
    if entry is None:
        some = ", ".join(v.video_id for v in shards.videos[:5])
        raise click.UsageError(f"--video: no video {video!r} in {out}; there are {some}, ...")
    draw_preview(shards, entry, target, start=start, frames=frames)
    click.echo(f"{target}: {video}, {entry.frame_count} frames")
