"""Provenance and names of result files, and means over splits.

``cmd_eval.results.records`` defines the content of result files, ``cmd_eval.results.files`` reads and writes them.
"""

from __future__ import annotations

import math
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

RESULT_FORMAT = 1
DEFAULT_CLIPS = 10
"""Clips per video, as in the paper."""
EVAL_FOLDER = "eval"
"""Folder for results inside a run's folder."""
LEAVE_ONE_OUT = "leave-one-out"
"""Name of the split in which each video is compared with all others."""


def software_versions() -> dict[str, str]:
    """Return the versions of Python, this project, torch and numpy."""
    names = ("context-motion-decoupling", "torch", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin of the figures in a result.

    Attributes:
        command: command line that computed them.
        shards: folders of the shards, see ``cmd_extract.shard.folders.join_paths``.
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
        precision: precision of the network, ``float32`` or ``bf16``.
        preprocessing: version of how clips are chosen and prepared; None without a network.
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
    precision: str = "float32"
    preprocessing: int | None = None
    standardized: bool = False
    pretext: Mapping[str, float] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=software_versions)

    def as_json(self) -> dict[str, Any]:
        """Return the fields for a result file, with the current time; metrics that are not finite are left out."""
        fields = asdict(self)
        fields["pretext"] = {name: value for name, value in self.pretext.items() if math.isfinite(value)}
        return {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": fields.pop("software"),
            **fields,
        }


def result_record(kind: str, provenance: Provenance, **fields: Any) -> dict[str, Any]:
    """Return the content of a result file.

    Args:
        kind: one of ``cmd_eval.results.files.TYPES``.
        provenance: origin of the figures.
        fields: fields of this kind of result.
    """
    return {"kind": kind, "format": RESULT_FORMAT, "provenance": provenance.as_json(), **fields}


def result_name(kind: str, *words: str) -> str:
    """Return a file name for a result, made of its kind and the words that distinguish it; empty words are skipped."""
    return "-".join(re.sub(r"[^\w.-]+", "_", word) for word in (kind, *words) if word) + ".json"


def clip_suffixes(clips: int | None) -> list[str]:
    """Return the words for the number of clips in a result's file name; none for the default."""
    return [] if clips in (None, DEFAULT_CLIPS) else [f"{clips}-clips"]


def readout_suffixes(readout: str, *, standardized: bool) -> list[str]:
    """Return the words for the readout in a result's file name; none for the mean over clips."""
    return ([] if readout == "mean" else [readout]) + (["standardized"] if standardized else [])


def part_suffixes(test_part: str, train_part: str) -> list[str]:
    """Return the words for the parts of a split in a result's file name; none for ``test`` and ``train``."""
    return [] if (test_part, train_part) == ("test", "train") else [test_part, "in", train_part]


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
