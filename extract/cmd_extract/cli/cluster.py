"""The cluster options of ``run``, and the commands ``status`` and ``merge``; ``cli_submit`` has ``submit``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmd_extract.cluster.claims import Claims
from cmd_extract.system.liveness import STALE_SECONDS

if TYPE_CHECKING:
    from cmd_extract.cluster.shares import Share
    from cmd_extract.cluster.task import TaskSummary
    from cmd_extract.run.pipeline import Spread

_EXIT_WITH_FAILURES = 3
_SHARDS = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_STALE = click.option(
    "--stale-after",
    type=click.FloatRange(0, min_open=True),
    default=STALE_SECONDS,
    help="Seconds of silence after which a task counts as dead.",
)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """What ``run`` was told of clusters.

    Attributes:
        task, num_tasks: the share, if the scheduler does not tell.
        take_share: whether to look at the scheduler's environment.
        stale_after: seconds of silence after which a task counts as dead.
        backend: ``local`` or ``dask``.
        scheduler, scheduler_file: where dask's scheduler is.
    """

    task: int | None
    num_tasks: int | None
    take_share: bool
    stale_after: float
    backend: str
    scheduler: str | None
    scheduler_file: Path | None

    def __post_init__(self) -> None:
        if self.backend != "dask" and (self.scheduler or self.scheduler_file):
            raise click.UsageError("--scheduler and --scheduler-file need --backend dask")
        if not self.take_share and (self.task is not None or self.num_tasks is not None):
            raise click.UsageError("--no-share contradicts --task and --num-tasks")

    def share(self, environ: Mapping[str, str]) -> Share | None:
        """The share of this process; None if it makes all shards.

        Raises:
            ValueError: the options contradict each other or the environment.
        """
        from cmd_extract.cluster.shares import find_share

        share = find_share(environ, self.task, self.num_tasks) if self.take_share else None
        if share and self.backend == "dask":
            raise ValueError("backend: dask shares the work out by itself; leave out --task, or say --no-share")
        return share

    def spread(self, workers: int) -> Spread | None:
        """Where ``run_extraction`` is to make the shards."""
        if self.backend == "local":
            return None
        from cmd_extract.cluster.dask import DaskCluster, make_with_dask

        cluster = DaskCluster(address=self.scheduler, scheduler_file=self.scheduler_file, workers=workers)
        return functools.partial(make_with_dask, cluster)


def cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of ``ClusterOptions`` to a command, which gets them as ``cluster``."""

    @click.option("--task", type=click.IntRange(0), help="Make one share only: its number.  [default: Slurm's array]")
    @click.option("--num-tasks", type=click.IntRange(1), help="Number of shares.  [default: Slurm's array]")
    @click.option("--share/--no-share", "take_share", default=True, help="In a Slurm array, make one share only.")
    @_STALE
    @click.option("--backend", type=click.Choice(["local", "dask"]), default="local", help="Who makes the shards.")
    @click.option("--scheduler", metavar="ADDRESS", help="dask's scheduler.  [default: workers on this machine]")
    @click.option("--scheduler-file", type=_FILE, help="File in which dask's scheduler has put its address.")
    @functools.wraps(command)
    def wrapped(
        *,
        task: int | None,
        num_tasks: int | None,
        take_share: bool,
        stale_after: float,
        backend: str,
        scheduler: str | None,
        scheduler_file: Path | None,
        **others: Any,
    ) -> None:
        options = ClusterOptions(
            task=task,
            num_tasks=num_tasks,
            take_share=take_share,
            stale_after=stale_after,
            backend=backend,
            scheduler=scheduler,
            scheduler_file=scheduler_file,
        )
        command(cluster=options, **others)

    return wrapped


def print_task(summary: TaskSummary, share: Share, out: Path) -> None:
    """Says what became of a task."""
    rate = summary.frames / summary.seconds if summary.seconds else 0.0
    click.echo(f"{share}: complete")
    click.echo(f"shards    {summary.shards} made, {summary.found} were there or made by others")
    click.echo(f"videos    {summary.videos} made, {summary.failures} failed; {rate:.0f} frames a second")
    if summary.damaged:
        click.echo(f"damaged   {summary.damaged}, extracted as far as they decode; `merge` lists them in damaged.csv")
    click.echo(f"when all tasks are complete, `cmd-extract merge {out}` writes the index")


@click.command(short_help="Show how far the tasks are.")
@click.argument("out", type=_SHARDS)
@click.option("--shards/--no-shards", "list_shards", default=False, help="List every shard that is not done.")
@_STALE
def status(out: Path, list_shards: bool, stale_after: float) -> None:
    """Show how far the tasks are that fill the folder OUT: done, running, failed, stale (dead), waiting."""
    from cmd_extract.cluster.slurm import JOBS_FOLDER
    from cmd_extract.cluster.status import read_status
    from cmd_extract.schema import RUN_NAME

    if not (out / RUN_NAME).exists() and (out / JOBS_FOLDER).is_dir():
        click.echo(f"submitted, no task has started yet; scripts and logs in {out / JOBS_FOLDER}")
        return
    found = read_status(out, Claims(out=out, stale_seconds=stale_after))
    counts = ", ".join(f"{found.count(s)} {s}" for s in ("done", "running", "stale", "failed", "waiting"))
    click.echo(f"shards  {counts}; {len(found.shards)} in all" + ("; merged" if found.merged else ""))
    if found.tasks:
        counted = f"{'shards':>9} {'videos':>8} {'failed':>7} {'damaged':>7} {'attempts':>8}"
        click.echo(f"{'task':<14} {'state':<8} {counted}  last attempt")
    for task in found.tasks:
        last = task.last
        where = f"{last.owner.host}, process {last.owner.pid}" + (f", job {last.owner.job}" if last.owner.job else "")
        note = f": {last.reason}" if last.reason and task.state != "done" else ""
        click.echo(
            f"{task.share.task:>5} of {task.share.num_tasks:<5} {task.state:<8} {f'{task.done}/{task.total}':>9} "
            f"{task.videos:>8} {task.failures:>7} {task.damaged:>7} {task.attempts:>8}  {where}{note}"
        )
    if list_shards:
        for name, state in found.shards.items():
            if state != "done":
                click.echo(f"{name}  {state}")


@click.command(short_help="Write the index of what tasks have made.")
@click.argument("out", type=_SHARDS)
@click.option("--manifest", type=_FILE, help="The manifest, if it was moved.  [default: where the tasks found it]")
@click.option("--root", type=_SHARDS, help="Folder of the videos, if they were moved.  [default: that of the tasks]")
@_STALE
def merge(out: Path, manifest: Path | None, root: Path | None, stale_after: float) -> None:
    """Check that tasks have made every shard of OUT, and write its index.json, failures.csv and run.json.

    Exit code 0: all well; 3: complete, but some videos failed (OUT/failures.csv); 1: shards are missing.
    """
    from cmd_extract.cluster.merge import merge_tasks
    from cmd_extract.run.progress import CountReport
    from cmd_extract.run.record import read_recorded_run
    from cmd_extract.system.signals import interruptible

    recorded = read_recorded_run(out, manifest, root, to_write=True)
    with interruptible(), CountReport("merge", "shards") as report:
        summary = merge_tasks(out, recorded, Claims(out=out, stale_seconds=stale_after), report.update)
    failed = f", {summary.failures} failed ({out / 'failures.csv'})" if summary.failures else ""
    damaged = f", {summary.damaged} damaged ({out / 'damaged.csv'})" if summary.damaged else ""
    click.echo(
        f"{out}: {summary.shards} shards, {summary.videos} videos{failed}{damaged}, {summary.size_bytes / 1e6:.1f} MB"
    )
    if summary.failures:
        raise SystemExit(_EXIT_WITH_FAILURES)
