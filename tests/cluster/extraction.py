"""A small extraction that can be paused at chosen videos, and its output on a single machine."""

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
SOME_FAILED = 3  # exit code; the last manifest row has no file


@dataclass(frozen=True, kw_only=True)
class SmallExtraction:
    """Input and expected output.

    Attributes:
        manifest: ``VIDEOS`` rows; the last one has no file.
        reference: output folder of a run on a single machine.
        ffmpeg: wrapper of FFmpeg that waits before a video as long as there is a file for it in ``gates``.
        gates: folder of the gate files.
    """

    manifest: Path
    reference: Path
    ffmpeg: Path
    gates: Path

    def close_gate(self, video: int) -> Path:
        """Pause the extraction of a video until the returned file is removed."""
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
    """Return the checksums of all output files that must be reproducible."""
    paths = [
        *out.glob("shard-*.h5"),
        *out.glob("index-*.h5"),
        *(out / f for f in ("index.json", "failures.csv", "damaged.csv")),
    ]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def attempts(out: Path, task: int) -> list[list[dict[str, Any]]]:
    """Return the parsed log of each attempt at a task, oldest first."""
    logs = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in (out / "tasks").glob(f"{task:05d}-*")
    ]
    return sorted(logs, key=lambda lines: lines[0]["time"])


def built(out: Path) -> list[str]:
    """Return the names of all shards that were built, once per build."""
    lines = [line for path in (out / "tasks").glob("[0-9]*") for line in path.read_text().splitlines()]
    return sorted(event["name"] for event in map(json.loads, lines) if event["event"] == "shard")
