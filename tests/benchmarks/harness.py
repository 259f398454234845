"""Command line shared by all benchmark scripts.

    python -m tests.benchmarks.SCRIPT [--rounds 5] [--quick] [--videos FILE...] [--output build/bench.json]

Without ``--output``, results are printed but not stored.
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

from cmd_extract.system.files import atomic_write
from tests.benchmarks.measuring import Result, describe_machine, text_table


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a benchmark run.

    Attributes:
        rounds: number of rounds.
        quick: use sizes that only show that the benchmark runs; the figures are meaningless.
        videos: files to use instead of synthetic ones.
        folder: folder for temporary files.
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
        """Return ``quick`` in a quick run, ``full`` otherwise."""
        return quick if self.quick else full


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Create a parser with the options of all benchmarks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="number of rounds  [default: 5; 2 with --quick]")
    parser.add_argument("--quick", action="store_true", help="use tiny sizes, to check that the benchmark runs")
    parser.add_argument("--videos", type=Path, nargs="+", default=[], help="files to use instead of synthetic videos")
    parser.add_argument("--output", type=Path, help="benchmark file to update with the results")
    return parser


def run_benchmark(benchmark: Callable[[Settings], list[Result]], description: str | None, words: Sequence[str]) -> None:
    """Run one benchmark, print its table, and store the results if ``--output`` is given."""
    parser = make_parser(description)
    arguments = parser.parse_args(words)
    machine = describe_machine(quick=arguments.quick)
    load, start = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            settings = Settings(
                rounds=(2 if arguments.quick else 5) if arguments.rounds is None else arguments.rounds,
                quick=arguments.quick,
                videos=tuple(video.absolute() for video in arguments.videos),
                folder=Path(folder),
            )
        except ValueError as error:
            parser.error(str(error))
        results = benchmark(settings)
    entries = [result.entry(machine, load) for result in results]
    print(text_table(entries))
    for source in dict.fromkeys(result.source for result in results):
        print(f"input: {source}")
    print(f"{machine}; load average {load:.1f} before; {time.monotonic() - start:.0f} s in total")
    if arguments.output is not None:
        update_entries(arguments.output, entries)


def read_entries(path: Path) -> list[dict[str, object]]:
    """Read the entries of a benchmark file.

    Raises:
        ValueError: the file does not exist or is not JSON.
    """
    try:
        entries: list[dict[str, object]] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); create it with python -m tests.benchmarks.run") from error
    return entries


def update_entries(path: Path, entries: Sequence[dict[str, object]]) -> None:
    """Write entries to a benchmark file, replacing entries of the same names and keeping the others."""
    known = {str(entry["name"]): entry for entry in read_entries(path)} if path.is_file() else {}
    known |= {str(entry["name"]): entry for entry in entries}
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(list(known.values()), indent=1) + "\n", "utf-8")
