"""Result files: provenance, reading and writing, and means over splits.

A result is a JSON object with a ``kind`` and a ``provenance``; ``eval/README.md`` lists the kinds and their fields.
"""

from __future__ import annotations

import json
import math
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cmd_extract.system.files import atomic_write, remove_leftovers

RESULT_FORMAT = 1
KINDS = ("retrieval", "probe", "recognition", "auxiliary", "decoupling", "evidence")
DEFAULT_CLIPS = 10
"""Clips per video, as in the paper."""
EVAL_FOLDER = "eval"
"""Folder for results inside a run's folder."""
LEAVE_ONE_OUT = "leave-one-out"
"""Name of the split in which each video is compared with all others."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin of the figures in a result.

    Attributes:
        command: command line that computed them.
        shards: folder of the shards.
        data_hash: hash of the shards' content, see ``cmd_extract.shard.reader.ShardSet``.
        features: kind of features, for example ``backbone, pooled``.
        checkpoint: folder of the checkpoint; None if no network was used.
        checkpoint_sha256: hash of its weights file.
        trained_on: ``data_hash`` of the shards it was trained on; None if unknown.
        step: its optimizer step.
        initial_weights: initial weights of its run, as recorded in the checkpoint; None if trained from scratch.
        untrained: whether the network's randomly initialized weights were used instead of the trained ones.
        settings: full training configuration.
        seed: random seed of the evaluation; the seed of the training run is part of ``settings``.
        clips: clips per video.
        readout: how the clips of a video become its feature, see ``cmd_eval.features.readout``.
        standardized: whether features were standardized with the gallery's statistics.
        pretext: last training metrics of the pretext tasks.
        software: package names and versions.
    """

    command: str
    shards: str
    data_hash: str
    features: str
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    trained_on: str | None = None
    step: int | None = None
    initial_weights: Mapping[str, Any] | None = None
    untrained: bool = False
    settings: Mapping[str, Any] | None = None
    seed: int = 0
    clips: int | None = None
    readout: str = "mean"
    standardized: bool = False
    pretext: Mapping[str, float] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=lambda: software_versions())

    def as_json(self) -> dict[str, Any]:
        """Return the fields for a result file, with the current time."""
        fields = asdict(self)
        return {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": fields.pop("software"),
            **fields,
        }


def software_versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, this project, torch, numpy and further ``packages``."""
    names = ("context-motion-decoupling", "torch", "numpy", *packages)
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def result_record(kind: str, provenance: Provenance, **fields: Any) -> dict[str, Any]:
    """Return the content of a result file.

    Args:
        kind: one of ``KINDS``.
        provenance: origin of the figures.
        fields: fields of this kind of result.

    Raises:
        ValueError: ``kind`` is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(KINDS)}")
    return {"kind": kind, "format": RESULT_FORMAT, "provenance": provenance.as_json(), **fields}


def result_name(kind: str, *words: str) -> str:
    """Return a file name for a result, made of its kind and the words that distinguish it; empty words are skipped."""
    return "-".join(re.sub(r"[^\w.-]+", "_", word) for word in (kind, *words) if word) + ".json"


def clip_suffixes(clips: int | None) -> list[str]:
    """Return the words for the number of clips in a result's file name; none for the default."""
    return [] if clips in (None, DEFAULT_CLIPS) else [f"{clips}-clips"]


def readout_suffixes(readout: str, *, standardized: bool) -> list[str]:
    """Return the words for the read-out in a result's file name; none for the mean over clips."""
    return ([] if readout == "mean" else [readout]) + (["standardized"] if standardized else [])


def part_suffixes(test_part: str, train_part: str) -> list[str]:
    """Return the words for the parts of a split in a result's file name; none for ``test`` and ``train``."""
    return [] if (test_part, train_part) == ("test", "train") else [test_part, "in", train_part]


def write_result(path: Path, record: Mapping[str, Any]) -> None:
    """Write a result file atomically; NaN and infinity are written as null.

    Raises:
        OSError: the file cannot be written.
    """
    remove_leftovers(path.parent)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(_finite(record), indent=1, allow_nan=False) + "\n", "utf-8")


def read_result(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Read a result file.

    Args:
        path: the file.
        kind: expected kind; None accepts any kind.

    Raises:
        ValueError: the file is not a result, or has another kind or format version.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a result of cmd-eval ({error})") from error
    if not isinstance(record, dict) or record.get("kind") not in KINDS or "provenance" not in record:
        raise ValueError(f"{path}: not a result of cmd-eval; pass a JSON file written by one of its commands")
    if record.get("format") != RESULT_FORMAT:
        raise ValueError(
            f"{path}: result format version {record.get('format')} is not supported (expected {RESULT_FORMAT})"
        )
    if kind is not None and record["kind"] != kind:
        raise ValueError(f"{path}: is a {record['kind']} result, expected {kind}")
    return record


def mean_and_spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return the mean over splits, their sample standard deviation (None for one split), and their number.

    Returns:
        ``value``, ``spread`` and ``splits``.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("values: empty, need the figure of at least one split")
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"value": statistics.fmean(values), "spread": spread, "splits": len(values)}


def _finite(value: Any) -> Any:
    """Replace floats that JSON cannot represent by None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
