"""Submission to Slurm: a job array that builds the shards, followed by a job that merges them.

Only ``sbatch`` and ``squeue`` are used. The submitted scripts are kept in OUT/jobs for reference and resubmission.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cmd_extract.errors import SlurmError
from cmd_extract.system.files import write_whole

JOBS_FOLDER = "jobs"
_LOGS_FOLDER = "logs"
_POLL_SECONDS = 5.0
_TIMEOUT_SECONDS = 60.0
_UNKNOWN_JOB = "Invalid job id"


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

    def __post_init__(self) -> None:
        for name in ("num_tasks", "array_parallelism", "cpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
        for name in ("partition", "time_limit", "memory"):
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
        run = [_program(), "run", self.manifest.absolute(), self.out.absolute(), "--num-tasks", self.num_tasks]
        merge = [_program(), "merge", self.out.absolute()]
        # With exec, Slurm's signals reach cmd-extract, which then stops cleanly. The exit code of the merge is saved to
        # a file because Slurm does not keep exit codes without an accounting database.
        return {
            self.array_script: self._script("extract", "%A_%a", array, f"exec {_quote(*run, *self.options)}"),
            self.merge_script: self._script(
                "merge", "%j", [], f"{_quote(*merge)}\necho $? > {_quote(self.logs)}/merge-$SLURM_JOB_ID.exit"
            ),
        }

    def _script(self, name: str, job_id: str, options: list[str], command: str) -> str:
        log = str(self.logs).replace("%", "%%").replace('"', '\\"')
        # A requeued task appends to the log of its previous attempt.
        lines = [f"--job-name=cmd-{name}", f'--output="{log}/{name}-{job_id}.log"', "--open-mode=append", "--requeue"]
        lines += [f"--partition={self.partition}"] if self.partition else []
        lines += [f"--time={self.time_limit}"] if self.time_limit else []
        return "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in (*lines, *options)), "", command, ""])


def submit(submission: Submission) -> tuple[str, str]:
    """Write the scripts and submit both jobs.

    Returns:
        The job IDs of the array and of the merge, which starts once the array has ended, successfully or not.

    Raises:
        SlurmError: Slurm rejected a job.
    """
    # Slurm fails jobs without a message if it cannot open their log.
    submission.logs.mkdir(parents=True, exist_ok=True)
    for path, text in submission.scripts().items():
        write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))
    array = _sbatch(submission.array_script)
    try:
        return array, _sbatch(f"--dependency=afterany:{array}", submission.merge_script)
    except SlurmError as error:
        raise SlurmError(f"{error}; the array was submitted as job {array}, but its merge job was not") from None


def wait_for_jobs(jobs: Sequence[str], poll: Callable[[], None]) -> None:
    """Wait until jobs have left Slurm's queue.

    Args:
        jobs: job IDs.
        poll: called every few seconds, and once at the end.
    """
    while _in_queue(jobs):
        poll()
        time.sleep(_POLL_SECONDS)
    poll()


def merge_exit_code(submission: Submission, merge_job: str) -> int | None:
    """Return the exit code of ``cmd-extract merge``, or None if the job did not finish."""
    path = submission.logs / f"merge-{merge_job}.exit"
    return int(path.read_text()) if path.exists() else None


def _sbatch(*arguments: object) -> str:
    code, stdout, stderr = _call("sbatch", "--parsable", *arguments)
    if code:
        raise SlurmError(f"sbatch failed: {stderr.strip() or f'exit code {code}'}")
    return stdout.strip().partition(";")[0]


def _in_queue(jobs: Sequence[str]) -> bool:
    code, stdout, stderr = _call("squeue", "--noheader", "--format=%i", f"--jobs={','.join(jobs)}")
    if code and _UNKNOWN_JOB not in stderr:
        return True  # the controller is busy or restarting
    return bool(stdout.strip())


def _call(*command: object) -> tuple[int, str, str]:
    words = [str(word) for word in command]
    if shutil.which(words[0]) is None:
        raise SlurmError(f"{words[0]} not found; run this command on a host that can submit Slurm jobs")
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return 1, "", f"no response within {_TIMEOUT_SECONDS:.0f} s"
    return done.returncode, done.stdout, done.stderr


def _program() -> str:
    """Return the path of this installation's ``cmd-extract``; a batch job may run without an activated environment."""
    installed = Path(sys.executable).with_name("cmd-extract")
    return str(installed) if installed.exists() else "cmd-extract"


def _quote(*words: object) -> str:
    return " ".join(shlex.quote(str(word)) for word in words)
