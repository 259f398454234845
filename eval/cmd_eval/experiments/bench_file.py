"""What the benchmarks have measured of extraction, read from their result file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

REQUIRED = "extract_fps"
TRIAL = "--quick"
"""What the description of the machine says where sizes were too small to measure anything."""

_WANTED = ("extract_", "vectors_")
_FIELDS = ("name", "value", "unit", "versus", "machine")


def read_extraction_speed(path: Path) -> list[dict[str, Any]]:
    """The entries on extraction and motion vectors: ``name``, ``value``, ``unit``, ``versus``, ``machine``.

    Raises:
        ValueError: it is no file of the benchmarks, it lacks ``extract_fps``, or its sizes were those of a trial.
    """
    try:
        entries = json.loads(path.read_text("utf-8"))
        found = [
            {field: entry[field] for field in _FIELDS} for entry in entries if str(entry["name"]).startswith(_WANTED)
        ]
        for entry in found:
            entry["value"] = float(entry["value"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a result of the benchmarks ({type(error).__name__}: {error})") from error
    refuse_trial(path, found)
    if REQUIRED not in [entry["name"] for entry in found]:
        raise ValueError(f"{path}: has no entry {REQUIRED}; give the file that all benchmarks have written")
    return found


def refuse_trial(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Refuses figures of a run whose sizes were too small to measure anything.

    Raises:
        ValueError: an entry of the file is one.
    """
    if any(TRIAL in str(entry["machine"]) for entry in entries):
        raise ValueError(f"{path}: made with {TRIAL}, which measures nothing; run the benchmarks without it")
