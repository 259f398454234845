"""What all benchmarks share: measured commands, rounds in turn, results with their spread, the machine in words.

Processor time of a command is its own and that of all its children, as the system counts them once they have ended.
Where two things are compared they take turns, round by round, and each round gives one ratio, so that other work on
the machine meets both sides alike.
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

from cmd_eval.experiments.bench_file import TRIAL

PYTHON = (sys.executable, "-c")
COMMAND_SECONDS = 600
"""How long one command may take; a benchmark that hangs ends."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure of every round.

    Attributes:
        name: its name in the benchmark file.
        values: one of each round.
        unit: of them.
        versus: what it is compared with, or how it is meant.
        source: the input.
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
        """The median of the rounds."""
        return statistics.median(self.values)

    def entry(self, machine: str, load: float) -> dict[str, object]:
        """As it stands in the benchmark file; ``load`` is the machine's before the script."""
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


def measure(work: Callable[[], object]) -> Cost:
    """What the child processes that ``work`` starts and waits for cost."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cpu=cpu, wall=time.monotonic() - start)


def measure_own(work: Callable[[], object]) -> Cost:
    """What ``work`` costs in this process, all threads together."""
    cpu, start = time.process_time(), time.monotonic()
    work()
    return Cost(cpu=time.process_time() - cpu, wall=time.monotonic() - start)


def take_turns(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[Callable[[], object]], Cost] = measure,
) -> list[dict[str, Cost]]:
    """Every side once a round; the order is turned about from round to round."""
    names = list(sides)
    seen = []
    for number in range(rounds):
        costs = {name: clock(sides[name]) for name in (names if number % 2 == 0 else names[::-1])}
        seen.append(costs)
    return seen


def call(*command: object, cores: set[int] | None = None) -> None:
    """Runs a command; with ``cores`` it and all its children use these only.

    Raises:
        RuntimeError: it failed; the message ends with its last lines.
    """

    def confine() -> None:
        if cores is not None:
            os.sched_setaffinity(0, cores)

    words = [str(word) for word in command]
    # As for users, Python keeps what it has compiled.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(words, check=False, preexec_fn=confine, capture_output=True, timeout=COMMAND_SECONDS, env=env)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-5:]
        raise RuntimeError(f"{' '.join(words)[:300]} ended with code {done.returncode}: {' | '.join(said)}")


def tell_machine(*, quick: bool) -> str:
    """Processor, cores, date and versions, in words."""
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
    """What the system calls the processor."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text("utf-8").splitlines() if facts.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def show_number(value: float) -> str:
    """Three digits or more, no exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def plain_table(entries: Sequence[Mapping[str, object]]) -> str:
    """Entries of a benchmark file for a terminal."""
    rows = [("name", "value", "lowest - highest", "unit", "compared with")]
    rows += [(str(e["name"]), *_numbers(e), str(e["unit"]), str(e["versus"])) for e in entries]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for name, value, spread, unit, versus in rows:
        lines.append(
            f"{name:<{widths[0]}}  {value:>{widths[1]}}  {spread:>{widths[2]}}  {unit:<{widths[3]}}  {versus}".rstrip()
        )
    return "\n".join(lines)


def markdown_table(entries: Sequence[Mapping[str, object]]) -> str:
    """Entries of a benchmark file for a README: a table, then the inputs and the machines."""
    lines = ["| name | median | lowest to highest | unit | compared with |", "|---|---|---|---|---|"]
    for e in entries:
        value, spread = _numbers(e)
        lines.append(f"| `{e['name']}` | {value} | {spread.replace(' - ', ' to ')} | {e['unit']} | {e['versus']} |")
    names_of: dict[str, list[str]] = {}
    for e in entries:
        names_of.setdefault(str(e["source"]), []).append(f"`{e['name']}`")
    lines += ["", "Inputs:", ""]
    lines += [f"- {source} ({', '.join(names)})" for source, names in names_of.items()]
    lines += ["", *dict.fromkeys(f"Machine: {e['machine']}." for e in entries)]
    rounds, loads = (sorted({float(str(e[field])) for e in entries}) for field in ("rounds", "load"))
    lines.append(
        f"At least {rounds[0]:.0f} rounds; load of the machine before a script: {loads[0]:.1f} to {loads[-1]:.1f}."
    )
    return "\n".join(lines)


def _numbers(entry: Mapping[str, object]) -> tuple[str, str]:
    value, low, high = (float(str(entry[field])) for field in ("value", "low", "high"))
    return show_number(value), f"{show_number(low)} - {show_number(high)}"
