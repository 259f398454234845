"""Shared by all benchmarks: timed commands, interleaved rounds, results with their spread, machine description.

The CPU time of a command includes all its child processes, which the system counts when they end. Alternatives
that are compared run interleaved, and every round yields one ratio, so that other load on the machine affects both
sides equally.
"""

from __future__ import annotations

import datetime
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from cmd_eval.experiments.benchmark_results import TRIAL
from cmd_extract.console.tables import format_table

PYTHON = (sys.executable, "-c")
COMMAND_TIMEOUT_S = 600
"""Time limit for one command, so that a hanging benchmark ends."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Values of one figure, one per round.

    Attributes:
        name: name in the benchmark file.
        values: one value per round.
        unit: unit of the values.
        versus: what the figure is compared with, or how it is measured.
        source: description of the input.
    """

    name: str
    values: tuple[float, ...]
    unit: str
    versus: str
    source: str

    def __post_init__(self) -> None:
        if not self.values or not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"{self.name}: values {self.values} must be one or more finite numbers")

    @property
    def value(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.values)

    def entry(self, machine: str, load: float) -> dict[str, object]:
        """Return the entry of the benchmark file; ``load`` is the load of the machine before the script."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "versus": self.versus,
            "machine": machine,
            "low": min(self.values),
            "high": max(self.values),
            "rounds": len(self.values),
            "source": self.source,
            "load": load,
        }


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Processor and wall time in seconds."""

    cpu: float
    wall: float


def measure_children(work: Callable[[], object]) -> Cost:
    """Measure the child processes that ``work`` starts and waits for."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cpu=cpu, wall=time.monotonic() - start)


def measure_self(work: Callable[[], object]) -> Cost:
    """Measure ``work`` in this process, all threads together."""
    cpu, start = time.process_time(), time.monotonic()
    work()
    return Cost(cpu=time.process_time() - cpu, wall=time.monotonic() - start)


def interleave(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    measure: Callable[[Callable[[], object]], Cost] = measure_children,
) -> list[dict[str, Cost]]:
    """Measure every side once per round, in reverse order in every second round."""
    names = list(sides)
    return [
        {name: measure(sides[name]) for name in (names if number % 2 == 0 else names[::-1])} for number in range(rounds)
    ]


def run_command(*command: object, cores: set[int] | None = None) -> None:
    """Run a command, restricted with all its child processes to ``cores`` if given.

    Raises:
        RuntimeError: the command failed; the message ends with the last lines of its standard error.
    """

    def confine() -> None:
        if cores is not None:
            os.sched_setaffinity(0, cores)

    words = [str(word) for word in command]
    # Let Python cache bytecode, as it does for users.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        words, check=False, preexec_fn=confine, capture_output=True, timeout=COMMAND_TIMEOUT_S, env=env
    )
    if done.returncode != 0:
        last_lines = done.stderr.decode(errors="replace").strip().splitlines()[-5:]
        raise RuntimeError(f"{' '.join(words)[:300]} exited with code {done.returncode}: {' | '.join(last_lines)}")


def describe_machine(*, quick: bool) -> str:
    """Describe processor, number of cores, date and versions."""
    from cmd_extract.decode.ffmpeg import find_ffmpeg

    cores = len(os.sched_getaffinity(0))
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    parts = [
        f"{processor_name()}, {cores} cores",
        today,
        find_ffmpeg().version.replace(" version", ""),
        f"torch {version('torch')}",
        f"Python {platform.python_version()}",
    ]
    return ", ".join(parts) + (f"; {TRIAL}: no measurement" if quick else "")


def processor_name() -> str:
    """Model name of the processor, as reported by the system."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def format_number(value: float) -> str:
    """Format with at least three significant digits and no exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def text_table(entries: Sequence[Mapping[str, object]]) -> str:
    """Format entries of a benchmark file for the terminal."""
    rows = []
    for e in entries:
        value, low, high = _numbers(e)
        rows.append((str(e["name"]), value, f"{low} - {high}", str(e["unit"]), str(e["versus"])))
    return format_table(("name", "median", "range", "unit", "compared with"), rows, left=5)


def markdown_table(entries: Sequence[Mapping[str, object]]) -> str:
    """Format entries of a benchmark file for a README: a table, then the inputs and the machines."""
    lines = ["| name | median | range | unit | compared with |", "|---|---|---|---|---|"]
    for e in entries:
        value, low, high = _numbers(e)
        lines.append(f"| `{e['name']}` | {value} | {low} to {high} | {e['unit']} | {e['versus']} |")
    names_of: dict[str, list[str]] = {}
    for e in entries:
        names_of.setdefault(str(e["source"]), []).append(f"`{e['name']}`")
    lines += ["", "Inputs:", ""]
    lines += [f"- {source} ({', '.join(names)})" for source, names in names_of.items()]
    lines += ["", *dict.fromkeys(f"Machine: {e['machine']}." for e in entries)]
    rounds, loads = (sorted({float(str(e[field])) for e in entries}) for field in ("rounds", "load"))
    lines.append(
        f"At least {rounds[0]:.0f} rounds; load average before each script: {loads[0]:.1f} to {loads[-1]:.1f}."
    )
    return "\n".join(lines)


def _numbers(entry: Mapping[str, object]) -> tuple[str, str, str]:
    value, low, high = (format_number(float(str(entry[field]))) for field in ("value", "low", "high"))
    return value, low, high
