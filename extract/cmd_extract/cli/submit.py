"""The command ``submit``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import click

from cmd_extract.cli.run import run

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_MOST_TASKS = 100


@click.command(short_help="Extract by an array job on Slurm.")
@click.argument("manifest", type=_FILE)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF RUN]")
@click.option("--partition", metavar="NAME", help="Slurm's partition.  [default: the cluster's]")
@click.option("--array-parallelism", type=click.IntRange(1), help="Tasks that may run at once.  [default: all]")
@click.option(
    "--num-tasks", type=click.IntRange(1), help=f"Tasks of the array.  [default: one a shard, at most {_MOST_TASKS}]"
)
@click.option(
    "--time", "time_limit", metavar="TIME", help="Time limit of a task, such as 04:00:00.  [default: the partition's]"
)
@click.option("--mem", "memory", metavar="SIZE", help="Memory of a task, such as 16G.  [default: the partition's]")
@click.option("--cpus", type=click.IntRange(1), help="Cores of a task, one extracting process each.  [default: 1]")
@click.option("--wait", is_flag=True, help="Wait for the end; then the exit code is that of `cmd-extract merge`.")
@click.option("--dry-run", is_flag=True, help="Show what would be submitted, and do nothing.")
def submit(
    manifest: Path,
    out: Path,
    options: tuple[str, ...],
    partition: str | None,
    array_parallelism: int | None,
    num_tasks: int | None,
    time_limit: str | None,
    memory: str | None,
    cpus: int | None,
    wait: bool,
    dry_run: bool,
) -> None:
    """Extract the videos of MANIFEST into OUT by an array job on Slurm, and merge what its tasks have made.

    What follows -- goes to `cmd-extract run`, for example `-- --size 256x256 --scratch /tmp`. Scripts are written to
    OUT/jobs, logs to OUT/jobs/logs. Submitted again, it continues.
    """
    from cmd_extract.cli.options import read_options
    from cmd_extract.cluster.slurm import Submission, merge_verdict, wait_for
    from cmd_extract.cluster.slurm import submit as submit_jobs
    from cmd_extract.run.progress import CountReport

    # Wrong options are to fail here, not in a hundred logs.
    parsed = run.make_context("run", [str(manifest), str(out), *options]).params
    _refuse_what_is_submits(parsed)
    asked = read_options(manifest, parsed)
    asked.check_folder(out)
    shards = len(asked.plans)
    submission = Submission(
        manifest=manifest,
        out=out,
        options=options,
        num_tasks=min(num_tasks or _MOST_TASKS, shards),
        partition=partition,
        array_parallelism=array_parallelism,
        time_limit=time_limit,
        memory=memory,
        cpus=cpus,
    )
    click.echo(f"{len(asked.records)} videos in {shards} shards, {submission.num_tasks} tasks", err=True)
    if dry_run:
        for path, text in submission.scripts().items():
            click.echo(f"# {path}\n{text}")
        click.echo(f"# sbatch --parsable {quote(str(submission.array_script))}")
        click.echo(f"# sbatch --parsable --dependency=afterany:ARRAY {quote(str(submission.merge_script))}")
        return
    array, merge = submit_jobs(submission)
    click.echo(f"submitted array {array} and merge {merge}; logs in {submission.logs}; `cmd-extract status {out}`")
    if not wait:
        return
    with CountReport("extract", "shards") as report:
        wait_for((array, merge), lambda: report.update(sum(1 for _ in out.glob("shard-*.h5")), shards))
    verdict = merge_verdict(submission, merge)
    log = submission.logs / f"merge-{merge}.log"
    click.echo(log.read_text(errors="replace") if log.exists() else f"no {log}", nl=False)
    if verdict is None:
        raise RuntimeError(f"the merge did not come to its end; see {submission.logs} and `cmd-extract status {out}`")
    raise SystemExit(verdict)


def _refuse_what_is_submits(given: Mapping[str, Any]) -> None:
    """Options of ``run`` that contradict an array of tasks, each of which makes its share."""
    wrong = {
        "--task": given["task"] is not None,
        "--num-tasks": given["num_tasks"] is not None,
        "--no-share": not given["take_share"],
        "--backend": given["backend"] != "local",
        "--scheduler": given["scheduler"] is not None,
        "--scheduler-file": given["scheduler_file"] is not None,
        "--retry-failures": given["retry_failures"] is not None,
        "--dry-run": given["dry_run"],
    }
    for name, is_given in wrong.items():
        if is_given:
            hint = "; say it before the --" if name in ("--num-tasks", "--dry-run") else ""
            raise click.UsageError(f"{name}: not among the options of the tasks{hint}")
