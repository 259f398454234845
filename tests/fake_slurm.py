"""Stand-ins for Slurm's commands that run jobs at once on this machine; tests/cluster uses a real Slurm."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SBATCH = """\
import json, os, re, shlex, subprocess, sys
from pathlib import Path

root = Path({root!r})
arguments, script = sys.argv[1:-1], Path(sys.argv[-1])
assert arguments.pop(0) == "--parsable"
jobs = root / "jobs.jsonl"
number = 100 + (len(jobs.read_text().splitlines()) if jobs.exists() else 0)
if (root / f"reject-{{number}}").exists():
    sys.exit("sbatch: error: Batch job submission failed: Invalid partition name specified")
lines = [line.removeprefix("#SBATCH ") for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
options = dict(shlex.split(line)[0].partition("=")[::2] for line in lines + arguments)
tasks = [None]
if "--array" in options:
    low, high = re.fullmatch(r"(\\d+)-(\\d+)(?:%\\d+)?", options["--array"]).groups()
    tasks = range(int(low), int(high) + 1)
codes = []
for task in tasks:
    environ = dict(os.environ, SLURM_JOB_ID=str(number + 100 * (task or 0)))
    names = {{"%%": "%", "%j": str(number), "%A": str(number), "%a": str(task)}}
    if task is not None:
        environ.update(SLURM_ARRAY_JOB_ID=str(number), SLURM_ARRAY_TASK_ID=str(task), SLURM_ARRAY_TASK_MIN=low)
        environ.update(SLURM_ARRAY_TASK_MAX=high, SLURM_ARRAY_TASK_COUNT=str(len(tasks)), SLURM_ARRAY_TASK_STEP="1")
    log = re.sub("%.", lambda match: names[match[0]], options["--output"])
    with open(log, "a") as stream:
        codes.append(subprocess.run(["bash", script], env=environ, stdout=stream, stderr=stream).returncode)
with jobs.open("a") as stream:
    stream.write(json.dumps({{"script": str(script), "options": options, "exit_codes": codes}}) + "\\n")
print(f"{{number}};cluster")
"""
_SQUEUE = """\
import sys
from pathlib import Path

calls = Path({root!r}) / "squeue-calls"
with calls.open("a") as stream:
    stream.write("call\\n")
if len(calls.read_text().splitlines()) == 1:
    print("101")
else:
    sys.exit("slurm_load_jobs error: Invalid job id specified")
"""
_SCONTROL = """\
import sys
from pathlib import Path

assert sys.argv[1:] == ["show", "config"]
print((Path({root!r}) / "slurm.conf").read_text())
"""


@dataclass(frozen=True, kw_only=True)
class FakeSlurm:
    """A folder with ``sbatch``, ``squeue`` and ``scontrol``.

    Job IDs count from 100. ``squeue`` shows a job at its first call only.

    Attributes:
        root: folder of the state.
    """

    root: Path

    @classmethod
    def install(cls, root: Path) -> FakeSlurm:
        """Write the programs."""
        slurm = cls(root=root)
        slurm.bin.mkdir(parents=True)
        for name, text in (("sbatch", _SBATCH), ("squeue", _SQUEUE), ("scontrol", _SCONTROL)):
            program = slurm.bin / name
            # Without site-packages, Python starts faster.
            program.write_text(f"#!{sys.executable} -IS\n{text.format(root=str(root))}")
            program.chmod(0o755)
        slurm.configure({"MaxArraySize": 1001, "MaxJobCount": 10000})
        return slurm

    @property
    def bin(self) -> Path:
        """Folder of the programs, for PATH."""
        return self.root / "bin"

    def configure(self, settings: Mapping[str, object]) -> None:
        """Set what ``scontrol show config`` prints."""
        text = "".join(f"{name:<23} = {value}\n" for name, value in settings.items())
        (self.root / "slurm.conf").write_text(f"Configuration data as of 2024-01-01T00:00:00\n{text}")

    def reject(self, job: int) -> None:
        """Make ``sbatch`` reject the job that would get this ID."""
        (self.root / f"reject-{job}").touch()

    def jobs(self) -> list[dict[str, Any]]:
        """Return script, options and exit codes (one per task) of all jobs."""
        path = self.root / "jobs.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
