from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from click.testing import Result as CliResult

from cmd_eval.cli.main import main
from cmd_eval.metrics.paired import runs_difference
from cmd_eval.results.files import write_result
from cmd_eval.results.formats import FORMATS, Cell, Table, format_tables, number_cell
from tests.unit.cmd_eval.report import result_files as results


def compare(*arguments: object) -> CliResult:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def lines_of(*arguments: object) -> list[str]:
    result = compare(*arguments)
    assert result.exit_code == 0, result.output
    return [line for line in result.output.splitlines() if line and "───" not in line]


def put(folder: Path, name: str, record: dict[str, Any]) -> Path:
    write_result(folder / f"{name}.json", record)
    return folder / f"{name}.json"


def retrieval(ranks: list[int | None], **changes: Any) -> dict[str, Any]:
    record = results.retrieval(results.provenance(**changes))
    for row, rank in zip(record["splits"][0]["videos"], ranks, strict=True):
        row["rank"] = rank
    return record


def test_the_accuracy_of_directions_is_shown_beside_the_majority(tmp_path: Path) -> None:
    pretext = {"context_top1": 0.5, "context_top5": 0.9, "context_candidates": 16}
    pretext |= {"motion_top1": 0.6, "motion_majority": 0.25}
    path = put(tmp_path, "r", results.retrieval(results.provenance(pretext=pretext)))
    *_, context, motion = lines_of(path)
    assert "context task of r, last training batches: top-1 50.0%, top-5 90.0% of 16 candidates" in context
    assert motion.endswith("top-1 60.0% at moving positions (most frequent direction: 25.0%)")


def test_results_that_are_not_comparable_have_separate_tables(tmp_path: Path) -> None:
    changes = {"a": {}, "b": {}, "val": {"test_part": "val"}, "other": {"split_column": "split2"}, "data": {}}
    paths = []
    for number, (name, change) in enumerate(changes.items()):
        record = results.retrieval(results.provenance(data_hash="ef"[name == "data"] * 64), value=number / 10)
        record["splits"][0] |= change | {"chance": {"R@1": 0.01 * (number // 2 + 1), "R@5": 0.5}}
        paths.append(put(tmp_path, name, record))
    lines = lines_of(*paths)
    unit = "% (95 % interval over 8 groups)"
    assert [line.split("  ")[0] for line in lines] == [
        *(f"retrieval by label, split1, data eeeeeeee, {unit}", "a", "b", "chance"),
        *("paired difference, mean over videos, percentage points (95 % interval over 8 groups)", "b minus a"),
        *(f"retrieval by label, split1 (val / train), data eeeeeeee, {unit}", "val", "chance"),
        *(f"retrieval by label, split2, data eeeeeeee, {unit}", "other", "chance"),
        *(f"retrieval by label, split1, data ffffffff, {unit}", "data", "chance"),
    ]
    assert [line.split()[1] for line in lines if "chance" in line] == ["1.0", "2.0", "2.0", "3.0"]


def test_differences_are_paired_by_video_over_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = ([int(rank) or None for rank in rng.integers(0, 4, 20)] for _ in range(2))
    shuffled = retrieval(second)
    shuffled["splits"][0]["videos"] = shuffled["splits"][0]["videos"][::-1]
    paths = put(tmp_path, "a", retrieval(first)), put(tmp_path, "b", shuffled)
    (line,) = [line for line in lines_of(*paths) if line.startswith("b minus a")]
    groups = [f"g{n % 8}" for n in range(20)]
    for place, k in enumerate((1, 5)):
        hits = [[float(rank is not None and rank <= k) for rank in ranks] for ranks in (second, first)]
        expected = runs_difference(np.array(hits[0]), np.array(hits[1]), groups)
        value, interval = line.split()[3 + 2 * place : 5 + 2 * place]
        assert value == f"{100 * expected.value:+.1f}"
        assert interval == f"({100 * expected.low:+.1f}..{100 * expected.high:+.1f})"


def test_results_with_the_same_name_are_seeds_of_one_method(tmp_path: Path) -> None:
    ranks = [[1] * hits + [None] * (20 - hits) for hits in (12, 14, 6, 8)]
    paths = [put(tmp_path, f"{n}", retrieval(own)) for n, own in enumerate(ranks)]
    arguments = [f"{name}={path}" for name, path in zip(("both", "both", "one", "one"), paths, strict=True)]
    lines = lines_of(*arguments)
    assert [line.split("  ")[0] for line in lines[1:3]] == ["both (2 runs)", "one (2 runs)"]
    assert lines[4].startswith(
        "paired difference, mean over videos, percentage points (95 % interval over 8 groups and seeds)"
    )
    hits = np.array([[float(rank == 1) for rank in own] for own in ranks])
    expected = runs_difference(hits[2:], hits[:2], [f"g{n % 8}" for n in range(20)])
    assert f"{100 * expected.value:+.1f} ({100 * expected.low:+.1f}..{100 * expected.high:+.1f})" in lines[5]


def test_probes_and_recognition_are_compared(tmp_path: Path) -> None:
    tuned = results.recognition()
    tuned["splits"][0]["videos"] = [row | {"top1": True} for row in tuned["splits"][0]["videos"]]
    lines = lines_of(put(tmp_path, "probe", results.probe()), put(tmp_path, "tuned", tuned))
    assert lines[0].split()[:4] == ["accuracy", "by", "label,", "split1,"]
    assert lines[3].split() == ["chance", "33.3"]
    assert lines[5].startswith("tuned minus probe")
    assert "+15.0" in lines[5], "3 of 20 predictions of the probe are wrong"
    other = results.probe()
    other["splits"][0]["videos"][0]["video"] = "elsewhere"
    lines = lines_of(put(tmp_path, "probe", results.probe()), put(tmp_path, "other", other))
    assert lines[-1].startswith("other minus probe: not paired, 19 of 20 videos in common")


def test_invalid_comparisons_are_rejected(tmp_path: Path) -> None:
    good = put(tmp_path, "good", results.retrieval())
    other = put(tmp_path, "sub/good", results.retrieval())
    second = results.retrieval()
    second["splits"][0]["split_column"] = "split2"
    (tmp_path / "bad.json").write_text("{}")
    for arguments, message in (
        ([tmp_path / "bad.json"], "not a result"),
        ([tmp_path / "nothing.json"], "nothing.json: no such file"),
        ([good, other], "another result is also named good; tell them apart with NAME=FILE"),
        ([put(tmp_path, "aux", results.auxiliary())], "contains auxiliary results; only retrieval, probe"),
        ([f"x={good}", f"x={put(tmp_path, 's2', second)}"], "x: its results are on different data, targets or splits"),
    ):
        result = compare(*arguments)
        assert result.exit_code == 1
        assert message in result.output


@pytest.mark.parametrize("style", FORMATS)
def test_every_format_has_all_values(style: str, tmp_path: Path) -> None:
    paths = put(tmp_path, "a_1", results.retrieval()), put(tmp_path, "b", results.retrieval(value=0.4))
    result = compare(*paths, "--format", style)
    assert result.exit_code == 0, result.output
    if style == "csv":
        rows = list(csv.DictReader(io.StringIO(result.output)))
        assert [row["row"] for row in rows] == ["a_1"] * 2 + ["b"] * 2 + ["chance"] * 2 + ["b minus a_1"] * 2
        assert (rows[0]["column"], float(rows[0]["value"]), float(rows[0]["low"])) == ("R@1", 0.5, 0.4)
        assert rows[6]["table"] == "retrieval by label, split1, paired differences"
    else:
        assert "50.0 (40.0-60.0)" in result.output
        assert ("a\\_1" if style == "latex" else "a_1") in result.output


def test_markdown_and_latex() -> None:
    rows = [[Cell("a|b"), number_cell({"value": 0.5, "spread": 0.02})], [Cell("c & d_e")]]
    table = Table(title="t", columns=["%", "R@1"], rows=rows)
    assert format_tables([table], "markdown").splitlines() == [
        "| % | R@1 |",
        "| --- | ---: |",
        "| a\\|b | 50.0 +- 2.0 |",
        "| c & d_e |  |",
    ]
    assert format_tables([table], "latex").splitlines()[2:-2] == [
        r"\% & R@1 \\",
        r"\midrule",
        r"a|b & 50.0 $\pm$ 2.0 \\",
        r"c \& d\_e &  \\",
    ]
