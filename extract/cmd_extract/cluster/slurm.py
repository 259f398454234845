"""Batch jobs on Slurm: an array that makes the shards, and a job after it that merges them.

Everything goes through ``sbatch`` and ``squeue``; what was submitted stays to be read, and to be submitted again, in
OUT/jobs.
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
_LOGS = "logs"
_POLL_SECONDS = 5.0
_COMMAND_SECONDS = 60.0
_GONE = "Invalid job id"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What to submit.

    Attributes:
        manifest, out: arguments of ``cmd-extract run``.
        options: further options of it.
        num_tasks: tasks of the array.
        partition: Slurm's partition; None for the cluster's default. So for all that follow.
        array_parallelism: how many tasks may run at once.
        time_limit: of one task, as Slurm writes times (``04:00:00``).
        memory: of one task, as Slurm writes sizes (``16G``).
        cpus: cores of one task.
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
                raise ValueError(f"{name}: {value} is not at least 1")
        for name in ("partition", "time_limit", "memory"):
            value = getattr(self, name)
            if value is not None and (not value or any(c.isspace() for c in value)):
                raise ValueError(f"{name}: {value!r} is empty or has blanks in it")

    @property
    def folder(self) -> Path:
        """Where the scripts lie."""
        return self.out.absolute() / JOBS_FOLDER

    @property
    def logs(self) -> Path:
        """Where the jobs' logs lie."""
        return self.folder / _LOGS

    @property
    def array_script(self) -> Path:
        """The array's script; ``sbatch --array=3,7`` with it repeats two of its tasks."""
        return self.folder / "extract.sbatch"

    @property
    def merge_script(self) -> Path:
        """The script of the job that merges."""
        return self.folder / "merge.sbatch"

    def scripts(self) -> dict[Path, str]:
        """The text of each script."""
        limit = f"%{self.array_parallelism}" if self.array_parallelism else ""
        array = [f"--array=0-{self.num_tasks - 1}{limit}"]
        array += [f"--cpus-per-task={self.cpus}"] if self.cpus else []
        array += [f"--mem={self.memory}"] if self.memory else []
        run = [*_program(), "run", self.manifest.absolute(), self.out.absolute(), "--num-tasks", self.num_tasks]
        merge = [*_program(), "merge", self.out.absolute()]
        # exec: Slurm's signals then reach cmd-extract, which stops cleanly. The verdict of the merge is left in a file,
        # since Slurm forgets exit codes, unless it has a data base of jobs.
        return {
            self.array_script: self._script("extract", "%A_%a", array, f"exec {_quote(*run, *self.options)}"),
            self.merge_script: self._script(
                "merge", "%j", [], f"{_quote(*merge)}\necho $? > {_quote(self.logs)}/merge-$SLURM_JOB_ID.exit"
            ),
        }

    def _script(self, name: str, number: str, options: list[str], command: str) -> str:
        log = str(self.logs).replace("%", "%%").replace('"', '\\"')
        # A task that is requeued goes on in the log of its earlier attempt.
        lines = [f"--job-name=cmd-{name}", f'--output="{log}/{name}-{number}.log"', "--open-mode=append", "--requeue"]
        lines += [f"--partition={self.partition}"] if self.partition else []
        lines += [f"--time={self.time_limit}"] if self.time_limit else []
        return "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in (*lines, *options)), "", command, ""])


def submit(submission: Submission) -> tuple[str, str]:
    """Writes the scripts and submits both jobs.

    Returns:
        Slurm's numbers of the array and of the merge, which starts when the array has ended, however that ends.

    Raises:
        SlurmError: Slurm refuses; it says why.
    """
    # A job whose log cannot be opened fails without a word.
    submission.logs.mkdir(parents=True, exist_ok=True)
    for path, text in submission.scripts().items():
        write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))
    array = _sbatch(submission.array_script)
    try:
        return array, _sbatch(f"--dependency=afterany:{array}", submission.merge_script)
    except SlurmError as error:
        raise SlurmError(f"{error}; the array was submitted as job {array}, its merge was not") from None


def wait_for(jobs: Sequence[str], look: Callable[[], None]) -> None:
    """Waits until jobs have left Slurm's queue.

    Args:
        jobs: their numbers.
        look: called every few seconds meanwhile.
    """
    while _are_queued(jobs):
        look()
        time.sleep(_POLL_SECONDS)
    look()


def merge_verdict(submission: Submission, merge_job: str) -> int | None:
    """Exit code of ``cmd-extract merge``; None if the job did not come to its end."""
    path = submission.logs / f"merge-{merge_job}.exit"
    return int(path.read_text()) if path.exists() else None


def _sbatch(*arguments: object) -> str:
    code, said, complaint = _call("sbatch", "--parsable", *arguments)
    if code:
        raise SlurmError(f"sbatch: {complaint.strip() or f'exit code {code}'}")
    return said.strip().partition(";")[0]


def _are_queued(jobs: Sequence[str]) -> bool:
    code, said, complaint = _call("squeue", "--noheader", "--format=%i", f"--jobs={','.join(jobs)}")
    if code and _GONE not in complaint:
        return True  # a controller that is busy or restarts; ask again
    return bool(said.strip())


def _call(*command: object) -> tuple[int, str, str]:
    words = [str(word) for word in command]
    if shutil.which(words[0]) is None:
        raise SlurmError(f"{words[0]}: not found; this is no machine that submits to Slurm")
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        return 1, "", f"no answer within {_COMMAND_SECONDS:.0f} s"
    return done.returncode, done.stdout, done.stderr


def _program() -> list[str]:
    """This very cmd-extract: batch jobs have the same environment variables, but perhaps no activated shell."""
    beside = Path(sys.executable).with_name("cmd-extract")
    return [str(beside) if beside.exists() else "cmd-extract"]


def _quote(*words: object) -> str:
    return " ".join(shlex.quote(str(word)) for word in words)
