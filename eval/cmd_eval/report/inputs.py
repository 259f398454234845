"""What a report is made from: a training's folder, its results, and the shards they are of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmd_eval.results.schema import EVAL_FOLDER, read_result
from cmd_extract.errors import ShardError
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import CONFIG_NAME, list_checkpoints

METRICS_NAME = "metrics.jsonl"
"""The metrics file of a run; as in ``cmd_train.monitoring.metrics``, which evaluation does not import."""


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """A training and what was found out about it.

    Attributes:
        run_dir: its folder.
        config: its resolved configuration, as it has recorded it.
        metrics: its numbers, a line each; empty if there are none.
        checkpoint: its last checkpoint; None if there is none.
        results: result files by kind, oldest first.
        unread: files of results that cannot be read, a line each.
    """

    run_dir: Path
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, float]]
    checkpoint: Path | None
    results: Mapping[str, Sequence[Mapping[str, Any]]]
    unread: Sequence[str]

    @property
    def eval_dir(self) -> Path:
        """Where its results lie."""
        return self.run_dir / EVAL_FOLDER

    @property
    def all_results(self) -> list[Mapping[str, Any]]:
        """Results of all kinds."""
        return [record for records in self.results.values() for record in records]


def read_run(run_dir: Path) -> RunInputs:
    """Reads a training's folder, or one that holds results only; results that cannot be read are named, not fatal.

    Raises:
        ValueError: it is no training's folder, or its metrics are damaged.
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
    """The configuration of a training, of imported weights, or of what a comparison of several trainings recorded."""
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
        raise ValueError(f"{run_dir}: no training there; give a folder that `cmd-train` has written") from None
    try:
        config: dict[str, Any] = json.loads(text)
        if "settings" not in config:
            raise ValueError("no settings")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}); start the training again to have it written") from error
    return config


def read_metrics(path: Path, *, needed: bool) -> list[dict[str, float]]:
    """The numbers of a training; a last line without its end, cut off by a crash, is left out.

    Raises:
        ValueError: a line is damaged, or there is none though there is nothing else to report.
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
            raise ValueError(f"{path}, line {number}: not a line of metrics ({error}); remove it") from error
    if not found and needed:
        raise ValueError(f"{path.parent}: neither {METRICS_NAME} nor checkpoints nor results; train for a while first")
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


def open_shards(given: Path | None, inputs: RunInputs) -> tuple[ShardSet | None, str]:
    """The shards that pictures are drawn from.

    Args:
        given: their folder; None looks where the results say they were.
        inputs: the training and its results.

    Returns:
        The shards, or None with the reason why there are none.

    Raises:
        ValueError: ``given`` holds no shards, or others than those of the training and all its results.
    """
    known = {record["provenance"]["data_hash"] for record in inputs.all_results} | {inputs.config.get("data_hash")}
    if given is not None:
        shards = ShardSet(given)
        if shards.data_hash not in known:
            raise ValueError(f"{given}: other shards than those of {inputs.run_dir} and its results; give theirs")
        return shards, ""
    # The newest result first.
    by_time = sorted(inputs.all_results, key=lambda record: str(record["provenance"].get("created", "")), reverse=True)
    for folder in dict.fromkeys(record["provenance"]["shards"] for record in by_time):
        try:
            shards = ShardSet(Path(folder))
        except (ShardError, OSError):
            continue
        if shards.data_hash in known:
            return shards, ""
    return None, "the shards do not lie where the results say they were" if by_time else "no result names the shards"
