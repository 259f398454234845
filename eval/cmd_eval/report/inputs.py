"""Inputs of the report: the run folder, its results and the shards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmd_eval.results.files import read_result
from cmd_eval.results.schema import EVAL_FOLDER
from cmd_extract.errors import ShardError
from cmd_extract.shard.folders import Folders, join_paths, open_folders, split_paths
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import CONFIG_NAME, list_checkpoints

METRICS_NAME = "metrics.jsonl"
"""Name of the metrics file, as in ``cmd_train.monitoring.metrics``, which evaluation does not import."""


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """A training run and its results.

    Attributes:
        run_dir: run folder.
        config: recorded configuration.
        metrics: lines of the metrics file; empty if there is none.
        checkpoint: last checkpoint; None if there is none.
        results: results by kind, oldest first.
        unread: result files that cannot be read, one line each.
    """

    run_dir: Path
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, float]]
    checkpoint: Path | None
    results: Mapping[str, Sequence[Mapping[str, Any]]]
    unread: Sequence[str]

    @property
    def eval_dir(self) -> Path:
        """Folder of the results."""
        return self.run_dir / EVAL_FOLDER

    @property
    def all_results(self) -> list[Mapping[str, Any]]:
        """Results of all kinds."""
        return [record for records in self.results.values() for record in records]


def read_run(run_dir: Path) -> RunInputs:
    """Read a run folder, or a folder with results only. Result files that cannot be read are listed, not fatal.

    Raises:
        ValueError: it is neither, or the metrics file is damaged.
    """
    saved = list_checkpoints(run_dir)
    results, unread = _read_results(run_dir / EVAL_FOLDER)
    return RunInputs(
        run_dir=run_dir,
        config=_read_config(run_dir, saved, results),
        metrics=read_metrics(run_dir / METRICS_NAME, needed=not (saved or results)),
        checkpoint=saved[-1] if saved else None,
        results=results,
        unread=unread,
    )


def _read_config(
    run_dir: Path, saved: Sequence[Path], results: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Mapping[str, Any]:
    """Read the configuration of a run or of imported weights, or the one recorded in the results of an experiment."""
    path = run_dir / CONFIG_NAME
    if saved and not path.is_file():
        path = saved[-1] / CONFIG_NAME
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        recorded = [record["provenance"] for records in results.values() for record in records]
        for provenance in reversed(recorded):
            if provenance.get("settings"):
                return {"settings": provenance["settings"], "data_hash": provenance.get("trained_on")}
        raise ValueError(f"{run_dir}: not a run folder; give a folder created by `cmd-train`") from None
    try:
        config: dict[str, Any] = json.loads(text)
        if "settings" not in config:
            raise ValueError("no settings")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}); start the run again to rewrite it") from error
    return config


def read_metrics(path: Path, *, needed: bool) -> list[dict[str, float]]:
    """Read a metrics file; an incomplete last line, left by a crash, is ignored.

    Args:
        path: metrics file.
        needed: whether an absent or empty file is an error.

    Raises:
        ValueError: a line is damaged, or there is no line although ``needed``.
    """
    text = path.read_text("utf-8") if path.is_file() else ""
    found: list[dict[str, float]] = []
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            values = json.loads(line)
            found.append({str(key): value for key, value in values.items()})
            float(values["step"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: not a line of metrics ({error}); remove the line") from error
    if not found and needed:
        raise ValueError(
            f"{path.parent}: no metrics ({METRICS_NAME}), checkpoints or results found; train some steps first"
        )
    return found


def _read_results(folder: Path) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    results: dict[str, list[dict[str, Any]]] = {}
    unread = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = read_result(path)
        except (ValueError, OSError) as error:
            unread.append(str(error))
            continue
        results.setdefault(record["kind"], []).append(record | {"file": path.name})
    for records in results.values():
        records.sort(key=lambda record: str(record["provenance"].get("created", "")))
    return results, unread


def find_shards(given: Folders, inputs: RunInputs) -> tuple[ShardSet | None, str]:
    """Open the shards to draw pictures from.

    Args:
        given: folders of the shards; empty for the paths recorded in the results.
        inputs: the run and its results.

    Returns:
        The shards, or None and the reason.

    Raises:
        ValueError: ``given`` contains no shards, or other shards than those of the run and its results.
    """
    known = {record["provenance"]["data_hash"] for record in inputs.all_results} | {inputs.config.get("data_hash")}
    if given:
        shards = open_folders(given)
        if shards.data_hash not in known:
            raise ValueError(
                f"{join_paths(given)}: not the shards of {inputs.run_dir} or its results; give all folders of those"
            )
        return shards, ""
    # Newest first.
    by_time = sorted(inputs.all_results, key=lambda record: str(record["provenance"].get("created", "")), reverse=True)
    for paths in dict.fromkeys(record["provenance"]["shards"] for record in by_time):
        try:
            shards = open_folders(split_paths(paths))
        except (ShardError, OSError):
            continue
        if shards.data_hash in known:
            return shards, ""
    return None, "shards not found at the recorded path" if by_time else "no result records the path of the shards"
