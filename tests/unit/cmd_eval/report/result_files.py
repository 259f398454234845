"""Small made-up results of every kind, in the format that the commands of cmd-eval write."""

from __future__ import annotations

from typing import Any

CLASSES = ["left", "right", "up"]
CONFUSION = [[5, 2, 0], [1, 6, 0], [0, 0, 6]]


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
    return {"kind": kind, "format": 1, "provenance": given or provenance(), "notes": [], **fields}


def retrieval(given: dict[str, Any] | None = None, *, value: float = 0.5, target: str = "label") -> dict[str, Any]:
    recall = {"R@1": figure(value), "R@5": figure(min(value + 0.2, 1.0))}
    split = {
        "split_column": "split1",
        "test_part": "test",
        "train_part": "train",
        "target": target,
        "queries": 20,
        "gallery": 40,
        "unlabeled_left_out": 3,
        "copies_left_out": 0,
        "searched": 40,
        "recall": recall,
        "chance": {"R@1": 0.33, "R@5": 0.8},
        "per_class": [{"class": name, "queries": 7, "recall": recall} for name in CLASSES],
        "videos": [
            {"video": f"v{n}", "class": CLASSES[n % 3], "group": f"g{n % 8}", "rank": 1 if n < 20 * value else None}
            for n in range(20)
        ],
        "examples": [],
    }
    mean = {"target": target, "recall": {name: {"value": 0.4, "spread": 0.05, "splits": 3} for name in recall}}
    return _result("retrieval", given, splits=[split], mean=[mean], notes=["3 videos were left out"])


def predictions(confusion: list[list[int]]) -> list[dict[str, Any]]:
    """One video for each count of a confusion matrix."""
    pairs = [(t, p) for t, row in enumerate(confusion) for p, count in enumerate(row) for _ in range(count)]
    return [
        {
            "video": f"v{n}",
            "class": CLASSES[truth],
            "group": f"g{n % 8}",
            "predicted": CLASSES[predicted],
            "top1": truth == predicted,
            "top5": True,
        }
        for n, (truth, predicted) in enumerate(pairs)
    ]


def probe(given: dict[str, Any] | None = None, *, method: str = "logistic", kind: str = "probe") -> dict[str, Any]:
    split = {
        "split_column": "split1",
        "train_part": "train",
        "test_part": "test",
        "target": "label",
        "classes": list(CLASSES),
        "train": 40,
        "test": 20,
        "unlabeled_left_out": 0,
        "copies_left_out": 0,
        "top1": figure(0.6),
        "top5": figure(1.0),
        "chance": 1 / 3,
        "per_class": [
            {"class": name, "test": 7, "accuracy": 0.5, "low": 0.2, "high": 0.8, "unit": "groups", "units": 4}
            for name in CLASSES
        ],
        "confusion": [list(row) for row in CONFUSION],
        "videos": predictions(CONFUSION),
        "chosen": {"C": 10.0},
        "validation": {"folds": 5, "grouped": True, "top1": {"1": 0.5, "10": 0.6}},
    }
    return _result(kind, given, method=method, splits=[split], mean=[])


def recognition(given: dict[str, Any] | None = None) -> dict[str, Any]:
    record = probe(given, method="finetuned", kind="recognition")
    (split,) = record["splits"]
    del split["train"], split["chosen"], split["validation"]
    empty = dict.fromkeys(("accuracy", "low", "high"))
    split["classes"].append("down")
    split["per_class"].append({"class": "down", "test": 0, **empty})
    split["confusion"] = [[*row, 0] for row in split["confusion"]] + [[0, 0, 0, 0]]
    split |= {"clips": 10, "trained_on_split_column": "split1", "seed": 0, "checkpoint": "x", "classes_unknown": []}
    return record | {"clips": 10, "notes": ["top-5 is not meaningful: the classifier has 3 classes"]}


def auxiliary(given: dict[str, Any] | None = None) -> dict[str, Any]:
    runs = [
        {
            "seed": seed,
            "split_column": "split1",
            "auxiliary": arm,
            "top1": figure(top),
            "run_dir": "x",
            "checkpoint_sha256": "c" * 64,
        }
        for seed, tops in ((0, (0.3, 0.5)), (1, (0.4, 0.45)))
        for arm, top in zip(("none", "motion"), tops, strict=True)
    ]
    return _result(
        "auxiliary",
        given,
        recipe="finetune-demo",
        overrides=[],
        test_part="test",
        runs=runs,
        mean={arm: {"value": 0.4, "spread": 0.05, "splits": 2} for arm in ("none", "motion")},
        difference={"value": 0.125, "low": -0.02, "high": 0.27},
        standard_errors={"runs": 0.01, "videos": 0.02},
        pairs=2,
        pretraining=None,
    )


def decoupling(given: dict[str, Any] | None = None) -> dict[str, Any]:
    both = {"retrieval": figure(0.4), "probe": figure(0.5)}
    network = {"features": "backbone, pooled", "checkpoint": "x", "checkpoint_sha256": "c" * 64, "untrained": False}
    rows = [{"model": name, **network, "by_label": both, "by_context": both} for name in ("both heads", "one")]
    chance = {by: {"retrieval": 0.1, "probe": 0.2} for by in ("by_label", "by_context")}
    videos = {"by_label": 20, "by_context": 40}
    return _result("decoupling", given, split_columns=["split1"], rows=rows, chance=chance, videos=videos)


def evidence(given: dict[str, Any] | None = None) -> dict[str, Any]:
    by_label, by_group = {"R@1": figure(0.4), "probe": figure(0.5)}, {"R@1": figure(0.6)}
    seed = {"seed": 0, "by_label": {"R@1": 0.4, "probe": 0.5}, "by_group": {"R@1": 0.6}}
    rows = [
        {
            "model": name,
            "readout": readout,
            "seeds": [0],
            "by_label": by_label,
            "by_group": by_group,
            "by_split": [{"split_column": "split1", "by_label": by_label}],
            "by_seed": [seed],
        }
        for name, readout in (("both heads", "mean"), ("motion grids", None))
    ]
    difference = {"value": 0.1, "low": -0.1, "high": 0.3, "unit": "groups", "units": 8}
    comparison = {"first": "both heads", "second": "motion grids", "readout": "mean", "target": "label"}
    run = {"network": "both heads", "split_column": "split1", "seed": 0, "run_dir": "x", "step": 9, "sha256": "c" * 64}
    return _result(
        "evidence",
        given,
        size="small",
        plan={"steps": 9},
        split_columns=["split1"],
        runs=[run],
        rows=rows,
        chance={"by_label": {"R@1": 0.3, "probe": 0.3}, "by_group": {"R@1": 0.1}},
        comparisons=[comparison | {"measure": "R@1", "difference": difference}],
        videos={"by_label": 20, "by_group": 40},
        speed=None,
        auxiliary=None,
    )
