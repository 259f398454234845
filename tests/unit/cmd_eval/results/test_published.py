from __future__ import annotations

import csv
import re
from collections import Counter

import pytest

from cmd_eval.results.published import PublishedFigure, published_figures
from tests.paths import ROOT

MEASURES = {"retrieval R@1", "retrieval R@10", "fine-tuned top-1"}
DATASETS = {"UCF101", "HMDB51"}


def rows() -> list[dict[str, str]]:
    with (ROOT / "eval" / "cmd_eval" / "results" / "published.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_row_is_complete() -> None:
    for row in rows():
        assert None not in row, f"more cells than columns: {row}"
        assert None not in row.values(), f"fewer cells than columns: {row}"
        assert row["measure"] in MEASURES
        assert row["dataset"] in DATASETS
        assert row["pretrained_on"] in {"UCF101", "Kinetics-400", ""}
        assert row["method"]
        assert row["backbone"]
        assert re.fullmatch(r"|\d{2,3}", row["input_px"])
        assert re.fullmatch(r"\d{1,2}\.\d", row["percent"]), "percent with one decimal, as published"
        assert re.fullmatch(r"[A-Z]\S+ et al\., \w+ 20\d\d, arXiv:\d{4}\.\d{5}", row["source"])


def test_no_row_repeats_another() -> None:
    keys = ("measure", "method", "backbone", "input_px", "pretrained_on", "dataset")
    counts = Counter(tuple(row[key] for key in keys) for row in rows())
    assert max(counts.values()) == 1
    # Each method has one source.
    assert len({row["method"] for row in rows()}) == len({row["source"] for row in rows()})


def test_all_rows_are_read() -> None:
    figures = published_figures()
    assert sum(len(figure.by_dataset) for figure in figures) == len(rows())
    assert {name for figure in figures for name in figure.by_dataset} == DATASETS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by_dataset": {"UCF101": 51.8}}, r"51\.8 is not between 0 and 1"),
        ({"source": ""}, "source: empty for CoCLR"),
        ({"backbone": ""}, "backbone: empty for CoCLR"),
        ({"input_px": 0}, "input_px: 0 of CoCLR"),
    ],
)
def test_invalid_figures_are_rejected(change: dict[str, object], message: str) -> None:
    good = {
        "measure": "retrieval R@1",
        "method": "CoCLR",
        "backbone": "S3D",
        "input_px": 128,
        "pretrained_on": "UCF101",
        "by_dataset": {"UCF101": 0.5},
        "source": "x",
    }
    with pytest.raises(ValueError, match=message):
        PublishedFigure(**good | change)  # type: ignore[arg-type] # of many types
