"""The commands ``status`` and ``merge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmd_extract.cli import options
from cmd_extract.cli.publish import publish_folder

if TYPE_CHECKING:
    from cmd_extract.cluster.status import TaskStatus
    from cmd_extract.sources.location import Root

_TASK_COLUMNS = ("task", "state", "last attempt", "shards", "videos", "failed", "damaged", "attempts")


@click.command(short_help="Show the progress of all tasks.")
@options.shards_argument
@click.option("--shards/--no-shards", "list_shards", default=False, help="List every shard that is not done.")
@options.stale_after
def status(out: Path, list_shards: bool, stale_after: float) -> None:
    """Show the progress of the tasks that build the shards in OUT.

    States are done, running, failed, waiting, and stale for a task that no longer responds.
    """
    from cmd_extract.cluster.slurm import JOBS_FOLDER
    from cmd_extract.cluster.status import STATES, read_status
    from cmd_extract.console.tables import format_table
    from cmd_extract.run.task_log import DONE
    from cmd_extract.schema import RUN_NAME
    from cmd_extract.system.claims import Claims

    if not (out / RUN_NAME).exists() and (out / JOBS_FOLDER).is_dir():
        click.echo(f"submitted, but no task has started yet; scripts and logs are in {out / JOBS_FOLDER}")
        return
    found = read_status(out, Claims(out=out, stale_seconds=stale_after))
    counts = ", ".join(f"{found.count(state)} {state}" for state in STATES)
    click.echo(f"{len(found.shards)} shards: {counts}" + ("; merged" if found.merged else ""))
    if found.tasks:
        click.echo("\n" + format_table(_TASK_COLUMNS, [_task_row(task) for task in found.tasks], left=3))
    unfinished = [(name, state) for name, state in found.shards.items() if state != DONE]
    if list_shards and unfinished:
        click.echo("\n" + format_table(("shard", "state"), unfinished, left=2))
    for task in found.tasks:
        if task.last.reason and task.state != DONE:
            click.echo(f"\n{task.share}: {task.last.reason}")


def _task_row(task: TaskStatus) -> tuple[str, ...]:
    owner = task.last.owner
    place = f"{owner.host}, process {owner.pid}" + (f", job {owner.job}" if owner.job else "")
    counts = (task.videos, task.failures, task.damaged, task.attempts)
    name = f"{task.share.task} of {task.share.num_tasks}"
    return name, task.state, place, f"{task.done}/{task.total}", *map(str, counts)


@click.command(short_help="Write the index of shards built by tasks.")
@options.shards_argument
@options.moved_manifest
@options.moved_root
@options.stale_after
@click.option("--allow-failures", is_flag=True, help="Exit with 0 even if some videos failed.")
@options.publish
def merge(
    out: Path,
    manifest: Path | None,
    root: Root | None,
    stale_after: float,
    allow_failures: bool,
    publish: str | None,
) -> None:
    """Check that every shard of OUT has been built, and write index.json, failures.csv, damaged.csv and run.json.

    Exit codes: 0 success; 1 shards are missing; 3 complete, but some videos failed (OUT/failures.csv); with
    --allow-failures, 0 instead of 3.
    """
    from cmd_extract.cluster.merge import merge_tasks
    from cmd_extract.console.progress import ProgressDisplay
    from cmd_extract.run.recorded_run import read_recorded_run
    from cmd_extract.shard.index import find_indexes
    from cmd_extract.shard.summary import count_notes
    from cmd_extract.system.claims import Claims
    from cmd_extract.system.signals import interruptible

    recorded, before = read_recorded_run(out, manifest, root), find_indexes(out)
    with interruptible(), ProgressDisplay("merge", "shards") as display:
        summary = merge_tasks(out, recorded, Claims(out=out, stale_seconds=stale_after), display.update)
    failed = f", {summary.failures} failed ({out / 'failures.csv'})" if summary.failures else ""
    damaged = f", {summary.damaged} damaged ({out / 'damaged.csv'})" if summary.damaged else ""
    notes = f", {count} notes ({out / 'notes.csv'})" if (count := count_notes(out)) else ""
    found = f"{summary.videos} videos{failed}{damaged}{notes}"
    click.echo(f"{out}: {summary.shards} shards, {found}, {summary.size_bytes / 1e6:.1f} MB")
    options.print_relabeling(before, out, recorded.manifest)
    if publish is not None:
        publish_folder(out, publish)
    if summary.failures and not allow_failures:
        raise SystemExit(options.EXIT_SOME_FAILED)
