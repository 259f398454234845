"""Extractions by several tasks without a scheduler: a manifest of nine rows, and claims of other processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from cmd_extract.system.claims import Owner

SHARDS = 5
OPTIONS = ("--videos-per-shard", "2", "--workers", "1", "--size", "64x48", "--frame-short-side", "24")


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def write_claim(out: Path, number: int) -> Path:
    """Write a claim that appears to belong to a running process on another machine."""
    path = out / "claims" / f"shard-{number:05d}.h5"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(Owner(host="n1", machine="another", pid=1, job="7", restart=0))))
    return path
