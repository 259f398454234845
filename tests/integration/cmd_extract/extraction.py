"""Calls of ``cmd-extract``, and the content of its output folders."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from cmd_extract.cli.main import main
from cmd_extract.schema import VideoEntry
from cmd_extract.shard.reader import ShardSet
from tests.command_line import Outcome, outcome

MakeVideo = Callable[..., Path]
PROGRAM = "from cmd_extract.cli.main import main; main()"
"""For ``python -c``: ``cmd-extract`` in a process of its own."""
X264 = ("-c:v", "libx264")
PLAIN = (*X264, "-bf", "0", "-refs", "1", "-g", "12")
"""FFmpeg options for a stream like a canonical one."""
SIZE = ("--size", "160x120", "--frame-short-side", "48")
SMALL = ("--size", "64x48", "--frame-short-side", "24", "--workers", "1")


def call(*arguments: object) -> Outcome:
    """Call ``cmd-extract`` in this process."""
    return outcome(main, *arguments)


def write_manifest(folder: Path, names: Sequence[str]) -> Path:
    """Write a manifest of these files, whose names are also their ids."""
    path = folder / "m.csv"
    path.write_text("id,path\n" + "".join(f"{name},{name}\n" for name in names))
    return path


def extract(folder: Path, *options: str) -> tuple[Path, dict[str, str]]:
    """Extract all videos of a folder; return the output folder and the reason of each failure by path."""
    files = sorted(p.name for p in folder.iterdir() if p.suffix != ".csv" and p.name != "out")
    with (folder / "m.csv").open("w", newline="", errors="surrogateescape") as stream:
        csv.writer(stream).writerows([("id", "path"), *((f"v{i}", name) for i, name in enumerate(files))])
    out = folder / "out"
    code, output = call("run", folder / "m.csv", out, "--workers", 1, *SIZE, *options)
    assert code in (0, 3), output
    return out, {row["path"]: f"{row['stage']}: {row['reason']}" for row in read_rows(out / "failures.csv")}


def only(out: Path) -> tuple[ShardSet, VideoEntry]:
    """Return the shards of a single video, and its entry."""
    shards = ShardSet(out)
    (entry,) = shards.videos
    return shards, entry


def contents(out: Path) -> dict[str, bytes]:
    """Return the content of the files of an output folder that all runs with the same settings write alike."""
    return {p.name: p.read_bytes() for p in out.iterdir() if p.is_file() and p.name != "run.json"}


def all_files(folder: Path) -> dict[Path, bytes]:
    """Return the content of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        return list(csv.DictReader(stream))
