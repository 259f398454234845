"""The command ``submit``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from cmd_extract.cli import options
from cmd_extract.cli.run import run

if TYPE_CHECKING:
    from cmd_extract.cluster.slurm import Submission

# For clusters on which jobs may not request memory.
_PARTITION_DEFAULT = "default"


@click.command(short_help="Run an extraction as a Slurm job array.")
@click.argument("manifest", type=options.EXISTING_FILE)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.argument("run_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF RUN]")
@click.option("--partition", metavar="NAME", help="Slurm partition.  [default: the cluster's]")
@click.option("--array-parallelism", type=click.IntRange(1), help="Maximum number of tasks at once.  [default: all]")
@click.option("--num-tasks", type=click.IntRange(1), help="Number of tasks.  [default: one per shard, at most 100]")
@click.option(
    "--time", "time_limit", metavar="TIME", help="Time limit per task, such as 04:00:00.  [default: the partition's]"
)
@click.option("--mem", "memory", metavar="SIZE", help="Memory per task, such as 16G.  [default: the partition's]")
@click.option("--cpus", type=click.IntRange(1), help="CPU cores per task, one worker process each.  [default: 1]")
@click.option(
    "--merge-mem",
    metavar="SIZE",
    help=f"Memory of the merge job; `{_PARTITION_DEFAULT}` requests none.  [default: estimated from the manifest]",
)
@click.option(
    "--allow-failures", is_flag=True, help="Let the merge job succeed (exit with 0) even if some videos failed."
)
@click.option("--wait", is_flag=True, help="Wait until all jobs have ended; exit with the code of `cmd-extract merge`.")
@click.option("--dry-run", is_flag=True, help="Show the scripts and commands; write and submit nothing.")
def submit(
    manifest: Path,
    out: Path,
    run_arguments: tuple[str, ...],
    partition: str | None,
    array_parallelism: int | None,
    num_tasks: int | None,
    time_limit: str | None,
    memory: str | None,
    cpus: int | None,
    merge_mem: str | None,
    allow_failures: bool,
    wait: bool,
    dry_run: bool,
) -> None:
    """Extract the videos of MANIFEST into OUT as a Slurm job array, followed by a merge job.

    Arguments after -- are passed to `cmd-extract run`, for example `-- --size 256x256 --scratch /tmp`. Scripts are
    written to OUT/jobs, logs to OUT/jobs/logs. Submit again to continue an incomplete extraction.

    The merge job ends with the exit code of `cmd-extract merge`, so other jobs may depend on it (sbatch
    --dependency=afterok:ID); --allow-failures lets them start even if some videos failed.
    """
    from cmd_extract.cli.run_options import parse_run_options
    from cmd_extract.cluster.slurm import Submission, choose_num_tasks, estimate_merge_memory
    from cmd_extract.cluster.slurm import submit as submit_jobs
    from cmd_extract.run.plan_file import save_plan

    # Wrong options must fail here rather than in a hundred logs.
    given = run.make_context("run", [str(manifest), str(out), *run_arguments]).params
    _reject_incompatible(given)
    requested = parse_run_options(manifest, out, given)
    requested.check_folder(out)
    shards = len(requested.planned.plans)
    if merge_mem is None:
        merge_mem = estimate_merge_memory(requested.planned.rows)
    submission = Submission(
        manifest=manifest,
        out=out,
        options=run_arguments,
        num_tasks=choose_num_tasks(num_tasks, shards),
        partition=partition,
        array_parallelism=array_parallelism,
        time_limit=time_limit,
        memory=memory,
        cpus=cpus,
        merge_memory=None if merge_mem == _PARTITION_DEFAULT else merge_mem,
        allow_failures=allow_failures,
    )
    click.echo(f"{requested.planned.rows} videos in {shards} shards, {submission.num_tasks} tasks", err=True)
    if dry_run:
        _show_commands(submission)
        return
    array, merge = submit_jobs(submission)
    save_plan(out, requested.planned)  # for the tasks
    click.echo(f"submitted job array {array} and merge job {merge}; logs are in {submission.logs}")
    click.echo(f"run `cmd-extract status {out}` to see the progress")
    if wait:
        raise SystemExit(_wait(submission, array, merge, shards))


def _show_commands(submission: Submission) -> None:
    for path, text in submission.scripts().items():
        click.echo(f"# {path}\n{text}")
    click.echo(f"# sbatch --parsable {quote(str(submission.array_script))}")
    click.echo(f"# sbatch --parsable --dependency=afterany:ARRAY {quote(str(submission.merge_script))}")


def _wait(submission: Submission, array: str, merge: str, shards: int) -> int:
    """Wait for both jobs, print the log of the merge and return its exit code."""
    from cmd_extract.cluster.slurm import merge_exit_code, wait_for_jobs
    from cmd_extract.console.progress import ProgressDisplay
    from cmd_extract.schema import SHARD_GLOB

    out = submission.out
    with ProgressDisplay("extract", "shards") as display:
        wait_for_jobs((array, merge), lambda: display.update(sum(1 for _ in out.glob(SHARD_GLOB)), shards))
    code = merge_exit_code(submission, merge)
    log = submission.logs / f"merge-{merge}.log"
    click.echo(log.read_text(errors="replace") if log.exists() else f"no log at {log}\n", nl=False)
    if code is None:
        raise RuntimeError(
            f"the merge job {merge} did not finish; see its log in {submission.logs} and `cmd-extract status {out}`"
        )
    return code


def _reject_incompatible(given: Mapping[str, Any]) -> None:
    """Reject options of ``run`` that contradict a job array."""
    incompatible = {
        "--task": given["task"] is not None,
        "--num-tasks": given["num_tasks"] is not None,
        "--array": given["array"],
        "--backend": given["backend"] != "local",
        "--scheduler": given["scheduler"] is not None,
        "--scheduler-file": given["scheduler_file"] is not None,
        "--retry-failures": given["retry_failures"] is not None,
        "--publish": given["publish"] is not None,
        "--dry-run": given["dry_run"],
    }
    for name, is_given in incompatible.items():
        if is_given:
            hint = "; put it before the --" if name in ("--num-tasks", "--dry-run") else ""
            raise click.UsageError(f"{name}: cannot be passed to the tasks{hint}")
