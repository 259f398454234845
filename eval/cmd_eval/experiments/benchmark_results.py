"""Read the extraction speed from the result file of the benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

REQUIRED = "extract_fps"
TRIAL = "--quick"
"""Part of the machine description of benchmark runs whose sizes are too small to measure anything."""

_PREFIXES = ("extract_", "vectors_")
_FIELDS = ("name", "value", "unit", "versus", "machine")


def read_extraction_speed(path: Path) -> list[dict[str, Any]]:
    """Return the entries on extraction and motion vectors: ``name``, ``value``, ``unit``, ``versus``, ``machine``.

    Raises:
        ValueError: not a result file of the benchmarks, no entry ``extract_fps``, or results of a trial run.
    """
    try:
        entries = json.loads(path.read_text("utf-8"))
        found = [
            {field: entry[field] for field in _FIELDS} for entry in entries if str(entry["name"]).startswith(_PREFIXES)
        ]
        for entry in found:
            entry["value"] = float(entry["value"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a result file of the benchmarks ({type(error).__name__}: {error})") from error
    refuse_trial(path, found)
    if REQUIRED not in [entry["name"] for entry in found]:
        raise ValueError(f"{path}: no entry {REQUIRED}; give a result file of all benchmarks")
    return found


def refuse_trial(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Refuse the results of a trial run.

    Raises:
        ValueError: an entry is from a trial run.
    """
    if any(TRIAL in str(entry["machine"]) for entry in entries):
        raise ValueError(f"{path}: created with {TRIAL}, which measures nothing; run the benchmarks without it")
