"""A small extraction that goes wrong where it is told to, and what one machine makes of it."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmd_extract.decode.ffmpeg import FfmpegBinary

VIDEOS = 13
SHARD_OPTIONS = ("--videos-per-shard", "2", "--workers", "1")
SHARDS = 7
WITH_FAILURES = 3  # exit code; the last row of the manifest has no file


@dataclass(frozen=True, kw_only=True)
class SmallExtraction:
    """What the tests start from.

    Attributes:
        manifest: ``VIDEOS`` rows, the last without a file.
        reference: what one machine makes of it.
        ffmpeg: like the one at work, but it waits before a video for which there is a file in ``gates``.
        gates: see there.
    """

    manifest: Path
    reference: Path
    ffmpeg: Path
    gates: Path

    def close_gate(self, video: int) -> Path:
        """Holds up the extraction of a video until the file that is returned is removed."""
        gate = self.gates / f"v{video:02d}"
        gate.touch()
        return gate


def write_manifest(folder: Path) -> Path:
    path = folder / "manifest.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "path", "label", "split"])
        writer.writerows([f"v{i:02d}", f"v{i:02d}.mp4", "some", "train"] for i in range(VIDEOS))
    return path


def write_gated_ffmpeg(folder: Path, binary: FfmpegBinary) -> Path:
    path = folder / "ffmpeg"
    path.write_text(
        "#!/bin/sh\n"
        f"for gate in '{folder}/gates'/*; do\n"
        '  case "$*" in\n'
        '    *"${gate##*/}.mp4"*) while [ -e "$gate" ]; do sleep 0.1; done;;\n'
        "  esac\n"
        "done\n"
        f"exec '{binary.path}' \"$@\"\n"
    )
    path.chmod(0o755)
    (folder / "gates").mkdir()
    return path


def results(out: Path) -> dict[str, str]:
    """Checksums of all that an extraction is to be judged by."""
    paths = [*out.glob("shard-*.h5"), *(out / f for f in ("index.json", "failures.csv", "damaged.csv"))]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def attempts(out: Path, task: int) -> list[list[dict[str, Any]]]:
    """The lines of the logs of each attempt at a task, oldest first."""
    logs = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in (out / "tasks").glob(f"{task:05d}-*")
    ]
    return sorted(logs, key=lambda lines: lines[0]["time"])


def made(out: Path) -> list[str]:
    """Names of all shards that were made, as often as they were made."""
    lines = [line for path in (out / "tasks").iterdir() for line in path.read_text().splitlines()]
    return sorted(event["name"] for event in map(json.loads, lines) if event["event"] == "shard")
