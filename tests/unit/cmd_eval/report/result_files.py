"""Small made-up results of every kind, in the format that the commands of cmd-eval write."""

from __future__ import annotations

from typing import Any

CLASSES = ["left", "right", "up"]


def figure(value: float) -> dict[str, Any]:
    low, high = max(value - 0.1, 0.0), min(value + 0.1, 1.0)
    return {"value": value, "low": low, "high": high, "unit": "groups", "units": 8}


def provenance(**changes: Any) -> dict[str, Any]:
    return {
        "command": "cmd-eval something",
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"python": "3.11", "torch": "2"},
        "shards": "nowhere",
        "data_hash": "d" * 64,
        "features": "backbone, pooled",
        "checkpoint": "run/checkpoints/step-00000009",
        "checkpoint_sha256": "c" * 64,
        "trained_on": "d" * 64,
        "step": 9,
        "untrained": False,
        "settings": None,
        "seed": 0,
        "clips": 10,
        "pretext": {},
    } | changes


def _result(kind: str, given: dict[str, Any] | None, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "format": 1, "provenance": given or provenance(), "file": f"{kind}.json", **fields}


def retrieval(given: dict[str, Any] | None = None, *, value: float = 0.5, target: str = "label") -> dict[str, Any]:
    recall = {"R@1": figure(value), "R@5": figure(min(value + 0.2, 1.0))}
    split = {
        "split_column": "split1",
        "test_part": "test",
        "train_part": "train",
        "target": target,
        "queries": 20,
        "gallery": 40,
        "recall": recall,
        "chance": {"R@1": 0.33, "R@5": 0.8},
        "per_class": [{"class": name, "queries": 7, "recall": recall} for name in CLASSES],
        "examples": [],
    }
    mean = {"target": target, "recall": {name: {"value": 0.4, "spread": 0.05, "splits": 3} for name in recall}}
    return _result("retrieval", given, splits=[split], mean=[mean], notes=["3 videos were left out"])


def probe(given: dict[str, Any] | None = None, *, method: str = "linear", kind: str = "probe") -> dict[str, Any]:
    split = {
        "split_column": "split1",
        "train_part": "train",
        "test_part": "test",
        "target": "label",
        "classes": CLASSES,
        "train": 40,
        "test": 20,
        "top1": figure(0.6),
        "top5": figure(1.0),
        "chance": 1 / 3,
        "per_class": [{"class": name, "test": 7, "accuracy": 0.5} for name in CLASSES],
        "confusion": [[5, 2, 0], [1, 6, 0], [0, 0, 6]],
        "chosen": {"C": 10.0},
    }
    return _result(kind, given, method=method, splits=[split], mean=[])


def recognition(given: dict[str, Any] | None = None) -> dict[str, Any]:
    record = probe(given, method="finetuned", kind="recognition")
    (split,) = record["splits"]
    del split["train"], split["chosen"]
    split["per_class"].append({"class": "down", "test": 0, "accuracy": None, "low": None, "high": None})
    return record | {"notes": ["top-5 says nothing: the classifier has 3 classes"]}


def auxiliary(given: dict[str, Any] | None = None) -> dict[str, Any]:
    runs = [
        {"seed": seed, "split_column": "split1", "auxiliary": arm, "top1": figure(top), "run_dir": "x"}
        for seed, tops in ((0, (0.3, 0.5)), (1, (0.4, 0.45)))
        for arm, top in zip(("none", "motion"), tops, strict=True)
    ]
    difference = {"value": 0.125, "low": -0.02, "high": 0.27}
    return _result("auxiliary", given, runs=runs, difference=difference, pairs=2)


def decoupling(given: dict[str, Any] | None = None) -> dict[str, Any]:
    both = {"retrieval": figure(0.4), "probe": figure(0.5)}
    rows = [{"model": name, "checkpoint": "x", "by_label": both, "by_context": both} for name in ("both heads", "one")]
    chance = {by: {"retrieval": 0.1, "probe": 0.2} for by in ("by_label", "by_context")}
    return _result("decoupling", given, rows=rows, chance=chance)
