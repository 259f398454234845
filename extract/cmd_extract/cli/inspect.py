"""The commands ``verify``, ``inspect`` and ``preview``, which examine the output of an extraction."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmd_extract.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cmd_extract.run.recorded_run import RecordedRun
    from cmd_extract.shard.verify import CheckedShard, Problem, ShardCheck, ShardToCheck
    from cmd_extract.sources.location import Root

# Checked in less time than a process takes to start.
_BYTES_PER_WORKER = 64 << 20


@click.command(short_help="Verify an extraction; repair it.")
@options.shards_argument
@click.option("--repair", is_flag=True, help="Extract damaged shards and shards with changed sources again.")
@click.option("--quick", is_flag=True, help="Do not decode JPEGs; check everything else.")
@click.option("--sources/--no-sources", default=True, help="Compare source files with their recorded fingerprints.")
@options.moved_manifest
@options.moved_root
@options.workers
@click.option("--task", type=click.IntRange(0), help="Check only this task's part of the shards, with --num-tasks.")
@click.option("--num-tasks", type=click.IntRange(1), help="Total number of tasks.")
@options.timeout
@options.max_memory
@options.source_limits
@options.scratch
@options.ffmpeg
def verify(
    out: Path,
    repair: bool,
    quick: bool,
    sources: bool,
    manifest: Path | None,
    root: Root | None,
    workers: int | None,
    task: int | None,
    num_tasks: int | None,
    **given: Any,
) -> None:
    """Verify the extraction OUT: checksums, counts, offsets, JPEGs, motion grids and source files.

    Every problem is printed on one line. Remote sources are read completely. With --task and --num-tasks, only this
    task's part of the shards is checked; task 0 also checks the index and the tables. The options --scratch, --ffmpeg
    and the limits apply to --repair only, which requires the FFmpeg version of the original run.

    Exit codes: 0 no problems, or all repaired; 1 problems found.
    """
    from cmd_extract.console.progress import ProgressDisplay
    from cmd_extract.manifest.records import resolve_path
    from cmd_extract.run.recorded_run import read_recorded_run
    from cmd_extract.schema import INDEX_NAME, PREVIOUS_INDEX_NAME
    from cmd_extract.shard.verify import verify_folder
    from cmd_extract.system.signals import interruptible

    part = _parse_part(task, num_tasks, repair=repair)
    recorded = read_recorded_run(out, manifest, root) if sources or repair else None
    interrupted = repair and not (out / INDEX_NAME).exists() and (out / PREVIOUS_INDEX_NAME).exists()

    def check(index_name: str = INDEX_NAME) -> list[Problem]:
        with interruptible(), ProgressDisplay("verify", "shards") as display:
            return verify_folder(
                out,
                index_name=index_name,
                decode=not quick,
                sources=recorded.records if recorded and sources else None,
                resolve=partial(resolve_path, root=recorded.root) if recorded else None,
                part=part,
                spread=partial(_check_shards, workers),
                progress=display.update,
            )

    problems = check(PREVIOUS_INDEX_NAME if interrupted else INDEX_NAME)
    for problem in problems:
        click.echo(problem.text)
    if (problems or interrupted) and repair and recorded is not None:
        shards = {problem.shard for problem in problems if problem.shard is not None}
        _repair(out, recorded, shards, workers, given)
        problems = check()
        for problem in problems:
            click.echo(f"not repaired: {problem.text}")
    if problems:
        count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
        repairable = not repair and any(problem.shard is not None for problem in problems)
        hint = "; --repair extracts the affected shards again" if repairable else ""
        click.echo(f"{out}: {count}{hint}", err=True)
        raise SystemExit(options.EXIT_DAMAGED)
    click.echo(f"{out}: no problems found" + (f" by task {task} of {num_tasks}" if task is not None else ""))


def _check_shards(workers: int | None, check: ShardCheck, shards: Sequence[ShardToCheck]) -> Iterator[CheckedShard]:
    """Check shards in worker processes; by default, as many as the cores and the size of the shards are worth."""
    from cmd_extract.run.workers import build_locally, default_workers

    size = sum(shard.entry.size_bytes for shard in shards)
    return build_locally(workers or min(default_workers(), 1 + size // _BYTES_PER_WORKER), check, shards)


def _parse_part(task: int | None, num_tasks: int | None, *, repair: bool) -> tuple[int, int]:
    """Return task and number of tasks, 0 and 1 by default."""
    from cmd_extract.cluster.shares import find_share

    try:
        share = find_share({}, task, num_tasks, array=False)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if share is None:
        return 0, 1
    if repair:
        raise click.UsageError("--repair cannot be combined with --task; run it in a single process afterwards")
    return share.task, share.num_tasks


def _repair(
    out: Path,
    recorded: RecordedRun,
    shards: set[int],
    workers: int | None,
    given: Mapping[str, Any],
) -> None:
    """Extract shards again, with the options of the command."""
    from cmd_extract.decode.ffmpeg import find_ffmpeg
    from cmd_extract.run.pipeline import BuildSettings, run_extraction
    from cmd_extract.run.relabel import check_labels
    from cmd_extract.run.workers import default_workers
    from cmd_extract.schema import SHARD_PATTERN
    from cmd_extract.system.signals import interruptible

    check_labels(out, recorded.manifest, recorded.records)
    job = recorded.job(out, find_ffmpeg(given["ffmpeg_path"]), given["scratch"], options.limits_of(given))
    click.echo(f"extracting {len(shards)} shard{'' if len(shards) == 1 else 's'} again", err=True)
    with interruptible():
        run_extraction(
            recorded.planned,
            job,
            BuildSettings(
                workers=workers or default_workers(),
                redo=frozenset(SHARD_PATTERN.format(number) for number in shards),
            ),
        )


@click.command(short_help="Summarize an extraction.")
@options.shards_argument
def inspect(out: Path) -> None:
    """Summarize the extraction OUT: totals, sizes, codecs and motion vector statistics."""
    from cmd_extract.console.tables import format_table
    from cmd_extract.shard.summary import describe_folder

    click.echo(format_table(("property", "value"), describe_folder(out), left=2))


@click.command(short_help="Draw the keyframes and motion of a video.")
@options.shards_argument
@click.option("--video", required=True, help="Video ID, as in the manifest.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("preview.png"),
    help="Output file: .png, .jpg, or .gif for an animation.",
)
@click.option("--start", type=click.IntRange(0), default=0, help="First frame.")
@click.option("--frames", type=click.IntRange(1), default=16, help="Number of frames.")
def preview(out: Path, video: str, output: Path, start: int, frames: int) -> None:
    """Draw a video of the extraction OUT: keyframe, frames with motion vectors, motion as colors, valid cells.

    A picture shows four of the frames, an animation (.gif) all of them.
    """
    from cmd_extract.shard.preview import draw_preview
    from cmd_extract.shard.reader import ShardSet

    shards = ShardSet(out)
    found = shards.videos.find([video])
    if not found:
        examples = ", ".join(repr(v.video_id) for v in shards.videos[:5])
        raise click.UsageError(f"--video: no video {video!r} in {out}; IDs look like {examples}")
    entry = shards.videos[found[video]]
    draw_preview(shards, entry, output, start=start, frames=frames)
    click.echo(f"{output}: {video}, {entry.frame_count} frames")
