"""Result files: what every one says of where its figures come from, and figures over several splits.

A result is a JSON object of some ``kind`` with a ``provenance``; ``eval/README.md`` lists the kinds and their fields.
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

from cmd_eval.results.whole_file import replace_when_whole

RESULT_FORMAT = 1
KINDS = ("retrieval", "probe", "recognition", "auxiliary", "decoupling", "evidence")
DEFAULT_CLIPS = 10
"""Clips a video, as in the paper."""
EVAL_FOLDER = "eval"
"""Where, in a training's folder, its results lie."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where figures come from.

    Attributes:
        command: the command that made them.
        shards: folder of the shards.
        data_hash: what the shards hold, see ``cmd_extract.shard.reader.ShardSet``.
        features: what was compared, for example ``backbone, pooled``.
        checkpoint: the checkpoint's folder; None where no network took part.
        checkpoint_sha256: hash of its weights file.
        trained_on: ``data_hash`` of what it was trained on; None if not known.
        step: optimiser steps it had done.
        began_from: the weights that its training began from, as the training has recorded them; None if from scratch.
        untrained: whether its network was used as it was before training.
        settings: its full training configuration.
        seed: decides every draw of the evaluation; the training's own is in ``settings``.
        clips: clips a video.
        pretext: what the training's last lines said of its own task.
        software: names and versions of what computed the figures.
    """

    command: str
    shards: str
    data_hash: str
    features: str
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    trained_on: str | None = None
    step: int | None = None
    began_from: Mapping[str, Any] | None = None
    untrained: bool = False
    settings: Mapping[str, Any] | None = None
    seed: int = 0
    clips: int | None = None
    pretext: Mapping[str, float] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=lambda: software_versions())

    def as_json(self) -> dict[str, Any]:
        """For a result file, with the present time."""
        fields = asdict(self)
        return {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": fields.pop("software"),
            **fields,
        }


def software_versions(*further: str) -> dict[str, str]:
    """Versions of this project, of what its figures depend on, and of ``further`` distributions."""
    names = ("context-motion-decoupling", "torch", "numpy", *further)
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def result_record(kind: str, provenance: Provenance, **fields: Any) -> dict[str, Any]:
    """A result as it is written.

    Args:
        kind: one of ``KINDS``.
        provenance: where the figures come from.
        fields: what this kind holds.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(KINDS)}")
    return {"kind": kind, "format": RESULT_FORMAT, "provenance": provenance.as_json(), **fields}


def result_name(kind: str, *words: str) -> str:
    """The name of a result's file: what was asked, of what; empty words are left out."""
    return "-".join(re.sub(r"[^\w.-]+", "_", word) for word in (kind, *words) if word) + ".json"


def write_result(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a result under a temporary name and renames it; what is not a number is written as null.

    Raises:
        OSError: the file cannot be written.
    """
    with replace_when_whole(path) as temporary:
        temporary.write_text(json.dumps(_finite(record), indent=1, allow_nan=False) + "\n", "utf-8")


def read_result(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Reads a result file back.

    Args:
        path: the file.
        kind: what it must be; None for any kind.

    Raises:
        ValueError: it is no result, or one of another kind or format.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a result of cmd-eval ({error})") from error
    if not isinstance(record, dict) or record.get("kind") not in KINDS or "provenance" not in record:
        raise ValueError(f"{path}: not a result of cmd-eval; give a JSON file that one of its commands has written")
    if record.get("format") != RESULT_FORMAT:
        raise ValueError(f"{path}: result format {record.get('format')}, this release reads {RESULT_FORMAT}")
    if kind is not None and record["kind"] != kind:
        raise ValueError(f"{path}: a result of kind {record['kind']}, need {kind}")
    return record


def mean_and_spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """``value``: the mean over splits; ``spread``: their sample standard deviation, None of one; ``splits``: how many.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("values: none, need the figure of at least one split")
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"value": statistics.fmean(values), "spread": spread, "splits": len(values)}


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


LEAVE_ONE_OUT = "leave-one-out"
