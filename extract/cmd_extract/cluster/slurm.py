"""Submission to Slurm: a job array that builds the shards, followed by a job that merges them.

Only ``sbatch``, ``squeue`` and ``scontrol show config`` are used. The submitted scripts are kept in OUT/jobs for
reference and resubmission.
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from cmd_extract.errors import SlurmError
from cmd_extract.system.files import remove, remove_leftovers, write_atomically

JOBS_FOLDER = "jobs"
_LOGS_FOLDER = "logs"
_POLL_SECONDS = 5.0
_TIMEOUT_SECONDS = 60.0
_MAX_SILENT_SECONDS = 1800.0
_UNKNOWN_JOB = "Invalid job id"
_DEFAULT_MAX_TASKS = 100  # also named in the help of `submit`
# About three times what ten million rows were measured to use (PLANNING.md), because a failure takes more than a video.
_MERGE_MIB, _MERGE_BYTES_PER_ROW = 1024, 512


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job array and its merge job. Options that are None keep the cluster's default.

    Attributes:
        manifest, out: arguments of ``cmd-extract run``.
        options: further options for it.
        num_tasks: number of array tasks.
        partition: Slurm partition.
        array_parallelism: maximum number of tasks running at once.
        time_limit: time limit per task in Slurm's format (``04:00:00``).
        memory: memory per task in Slurm's format (``16G``).
        cpus: CPU cores per task.
        merge_memory: memory of the merge job.
        allow_failures: whether the merge job succeeds if all shards are complete but some videos failed.
    """

    manifest: Path
    out: Path
    options: tuple[str, ...] = ()
    num_tasks: int = 1
    partition: str | None = None
    array_parallelism: int | None = None
    time_limit: str | None = None
    memory: str | None = None
    cpus: int | None = None
    merge_memory: str | None = None
    allow_failures: bool = False

    def __post_init__(self) -> None:
        for name in ("num_tasks", "array_parallelism", "cpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
        for name in ("partition", "time_limit", "memory", "merge_memory"):
            value = getattr(self, name)
            if value is not None and (not value or any(c.isspace() for c in value)):
                raise ValueError(f"{name}: must not be empty or contain whitespace, got {value!r}")

    @property
    def folder(self) -> Path:
        """Folder of the scripts."""
        return self.out.absolute() / JOBS_FOLDER

    @property
    def logs(self) -> Path:
        """Folder of the job logs."""
        return self.folder / _LOGS_FOLDER

    @property
    def array_script(self) -> Path:
        """Script of the job array; to repeat two tasks, pass it to ``sbatch --array=3,7``."""
        return self.folder / "extract.sbatch"

    @property
    def merge_script(self) -> Path:
        """Script of the merge job."""
        return self.folder / "merge.sbatch"

    def scripts(self) -> dict[Path, str]:
        """Return the text of each script."""
        limit = f"%{self.array_parallelism}" if self.array_parallelism else ""
        array = [f"--array=0-{self.num_tasks - 1}{limit}"]
        array += [f"--cpus-per-task={self.cpus}"] if self.cpus else []
        array += [f"--mem={self.memory}"] if self.memory else []
        run = [_program(), "run", self.manifest.absolute(), self.out.absolute()]
        run += ["--array", "--num-tasks", self.num_tasks, *self.options]
        merge = [_program(), "merge", self.out.absolute(), *(["--allow-failures"] if self.allow_failures else [])]
        # With exec, Slurm's signals reach cmd-extract, which then stops cleanly. The exit code of the merge is saved to
        # a file because Slurm does not keep exit codes without an accounting database. It is also that of the job, on
        # which other jobs may depend.
        save = f"code=$?\necho $code > {_quote(self.logs)}/merge-$SLURM_JOB_ID.exit\nexit $code"
        merge_options = [f"--mem={self.merge_memory}"] if self.merge_memory else []
        return {
            self.array_script: self._script("extract", "%A_%a", array, f"exec {_quote(*run)}"),
            self.merge_script: self._script("merge", "%j", merge_options, f"{_quote(*merge)}\n{save}"),
        }

    def _script(self, name: str, job_id: str, options: list[str], command: str) -> str:
        log = str(self.logs).replace("%", "%%").replace('"', '\\"')
        # A requeued task appends to the log of its previous attempt.
        lines = [f"--job-name=cmd-{name}", f'--output="{log}/{name}-{job_id}.log"', "--open-mode=append", "--requeue"]
        lines += [f"--partition={self.partition}"] if self.partition else []
        lines += [f"--time={self.time_limit}"] if self.time_limit else []
        return "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in (*lines, *options)), "", command, ""])


def choose_num_tasks(requested: int | None, shards: int) -> int:
    """Return the number of array tasks: one per shard, at most as many as requested or as the cluster allows.

    Args:
        requested: maximum number of tasks; None for a default.
        shards: number of shards.

    Raises:
        SlurmError: the cluster's job arrays are smaller than requested, or disabled.
    """
    limit, tasks = _max_array_tasks(), min(requested or _DEFAULT_MAX_TASKS, shards)
    if limit is None or tasks <= limit:
        return tasks
    if limit < 1:
        raise SlurmError(
            "this cluster does not allow job arrays (MaxArraySize is 0 in `scontrol show config`); submit single jobs "
            "that run `cmd-extract run` with --task and --num-tasks"
        )
    if requested is not None:
        raise SlurmError(
            f"num_tasks: this cluster allows at most {limit} tasks per job array (MaxArraySize in `scontrol show "
            f"config`), got {tasks}; choose a smaller --num-tasks"
        )
    return limit


def estimate_merge_memory(rows: int) -> str:
    """Return a memory request for merging that is sufficient for a manifest of ``rows`` rows, in Slurm's format."""
    return f"{_MERGE_MIB + math.ceil(rows * _MERGE_BYTES_PER_ROW / 2**20)}M"


def submit(submission: Submission) -> tuple[str, str]:
    """Write the scripts and submit both jobs.

    Returns:
        The job IDs of the array and of the merge, which starts once the array has ended, successfully or not.

    Raises:
        SlurmError: Slurm is not available or rejected a job. If no job was submitted, no new folder is left behind.
        TimeoutError: Slurm does not respond; the array may have been submitted.
    """
    _require("sbatch")
    folder = submission.folder
    new_folders = list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    # Slurm fails jobs without a message if it cannot open their log.
    submission.logs.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    for path, text in submission.scripts().items():
        write_atomically(path, text)
    try:
        array = _sbatch(submission.array_script)
    except SlurmError:
        _discard(new_folders)
        raise
    try:
        return array, _sbatch(f"--dependency=afterany:{array}", submission.merge_script)
    except (SlurmError, TimeoutError) as error:
        raise SlurmError(
            f"{error}; the array was submitted as job {array}, but its merge job was not. Run `cmd-extract merge "
            f"{submission.out}` once the array has ended, or cancel it with `scancel {array}`"
        ) from None


def _discard(folders: Sequence[Path]) -> None:
    """Remove the scripts' folder and then its parents, all of them new; a parent that is in use by now is kept."""
    for path in folders[:1]:
        remove(path)
    with contextlib.suppress(OSError):
        for path in folders[1:]:
            path.rmdir()


def wait_for_jobs(jobs: Sequence[str], poll: Callable[[], None]) -> None:
    """Wait until jobs have left Slurm's queue.

    Args:
        jobs: job IDs.
        poll: called every few seconds, and once at the end.

    Raises:
        SlurmError: Slurm has not responded for half an hour.
    """
    last_response = time.monotonic()
    while (queued := _in_queue(jobs)) is not False:
        now = time.monotonic()
        last_response = now if queued else last_response
        if now - last_response > _MAX_SILENT_SECONDS:
            raise SlurmError(
                f"squeue has failed for {_MAX_SILENT_SECONDS / 60:.0f} minutes; jobs {', '.join(jobs)} may still be "
                "running, see `cmd-extract status`"
            )
        poll()
        time.sleep(_POLL_SECONDS)
    poll()


def merge_exit_code(submission: Submission, merge_job: str) -> int | None:
    """Return the exit code of ``cmd-extract merge``, or None if the job did not finish."""
    path = submission.logs / f"merge-{merge_job}.exit"
    return int(path.read_text()) if path.exists() else None


def _max_array_tasks() -> int | None:
    """Return the largest number of tasks in a job array on this cluster, or None if it cannot be found out."""
    if shutil.which("scontrol") is None:
        return None
    try:
        code, config, _ = _call("scontrol", "show", "config")
    except TimeoutError:
        return None
    # IDs start at 0, and the largest is MaxArraySize - 1. A scheduler parameter may set a lower limit.
    limits = re.findall(r"(?:^MaxArraySize\s*=\s*|\bmax_array_tasks=)(\d+)", config, re.MULTILINE)
    return min(map(int, limits), default=None) if code == 0 else None


def _sbatch(*arguments: object) -> str:
    code, stdout, stderr = _call("sbatch", "--parsable", *arguments)
    if code:
        raise SlurmError(f"sbatch failed: {stderr.strip() or f'exit code {code}'}")
    return stdout.strip().partition(";")[0]


def _in_queue(jobs: Sequence[str]) -> bool | None:
    """Return whether any of the jobs is in the queue; None if Slurm does not respond."""
    try:
        code, stdout, stderr = _call("squeue", "--noheader", "--format=%i", f"--jobs={','.join(jobs)}")
    except TimeoutError:
        return None
    if code and _UNKNOWN_JOB not in stderr:
        return None  # the controller is busy or restarting
    return bool(stdout.strip())


def _require(program: str) -> None:
    if shutil.which(program) is None:
        raise SlurmError(f"{program} not found; run this command on a host that can submit Slurm jobs")


def _call(*command: object) -> tuple[int, str, str]:
    """Run a command of Slurm; return its exit code, standard output and standard error.

    Raises:
        SlurmError: there is no such command.
        TimeoutError: it does not respond.
    """
    words = [str(word) for word in command]
    _require(words[0])
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{words[0]} did not respond within {_TIMEOUT_SECONDS:.0f} s") from None
    return done.returncode, done.stdout, done.stderr


def _program() -> str:
    """Return the path of this installation's ``cmd-extract``; a batch job may run without an activated environment."""
    installed = Path(sys.executable).with_name("cmd-extract")
    return str(installed) if installed.exists() else "cmd-extract"


def _quote(*words: object) -> str:
    return " ".join(shlex.quote(str(word)) for word in words)
