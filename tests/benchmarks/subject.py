"""The command line that every benchmark script has.

    python -m tests.benchmarks.SUBJECT [--rounds 5] [--quick] [--videos FILE...] [--output build/bench.json]

Without ``--output`` the results are printed and not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.measuring import Result, plain_table, tell_machine


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a benchmark is asked to do.

    Attributes:
        rounds: paired runs of each figure.
        quick: sizes that only show that everything runs; such figures mean nothing.
        videos: files to use instead of synthetic ones.
        folder: for temporary files.
    """

    rounds: int
    quick: bool
    videos: tuple[Path, ...]
    folder: Path

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"--rounds: {self.rounds} is below 1")
        missing = [str(video) for video in self.videos if not video.is_file()]
        if missing:
            raise ValueError(f"--videos: no file {', '.join(missing)}")

    def size(self, full: int, quick: int) -> int:
        """One of two sizes."""
        return quick if self.quick else full


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that all have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="paired runs  [default: 5; 2 with --quick]")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--videos", type=Path, nargs="+", default=[], help="files to use instead of synthetic videos")
    parser.add_argument("--output", type=Path, help="a benchmark file to put the results into")
    return parser


def run_subject(benchmark: Callable[[Plan], list[Result]], description: str | None, words: Sequence[str]) -> None:
    """Runs one script: measures, prints a table, keeps the results where asked to."""
    parser = options(description)
    asked = parser.parse_args(words)
    machine = tell_machine(quick=asked.quick)
    load, start = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            plan = Plan(
                rounds=(2 if asked.quick else 5) if asked.rounds is None else asked.rounds,
                quick=asked.quick,
                videos=tuple(video.absolute() for video in asked.videos),
                folder=Path(folder),
            )
        except ValueError as error:
            parser.error(str(error))
        results = benchmark(plan)
    entries = [result.entry(machine, load) for result in results]
    print(plain_table(entries))
    for source in dict.fromkeys(result.source for result in results):
        print(f"input: {source}")
    print(f"{machine}; load {load:.1f} before; {time.monotonic() - start:.0f} s in all")
    if asked.output is not None:
        keep_entries(asked.output, entries)


def read_entries(path: Path) -> list[dict[str, object]]:
    """The entries of a benchmark file.

    Raises:
        ValueError: it is none.
    """
    try:
        entries: list[dict[str, object]] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); make it with python -m tests.benchmarks.run") from error
    return entries


def keep_entries(path: Path, entries: Sequence[dict[str, object]]) -> None:
    """Puts entries into a benchmark file, in the place of those of the same names."""
    known = {str(entry["name"]): entry for entry in read_entries(path)} if path.is_file() else {}
    known |= {str(entry["name"]): entry for entry in entries}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(list(known.values()), indent=1) + "\n", "utf-8")
    partial.replace(path)
