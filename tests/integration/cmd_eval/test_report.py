from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cmd_eval.cli.main import main as eval_main
from cmd_extract.shard.reader import ShardSet
from cmd_train.cli.main import main as train_main
from tests.integration.cmd_eval.browser import Browser, open_browser
from tests.integration.cmd_train.training import options
from tests.unit.cmd_eval.report import result_files as results

WCAG_AA = 4.5
MAX_BYTES = 5e6
SECTIONS = ("retrieval", "recognition", "probe", "auxiliary", "decoupling")
PARTS = ("glance", "run", *SECTIONS, "confusion", "training", "examples", "search", "map", "motion")


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(eval_main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def run_dir(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its results; results that need other runs are made up."""
    run = tmp_path_factory.mktemp("report") / "run"
    shown = {"run__knn_epochs": 1, "data__split_column": "split", "optim__batch_size": 6}
    arguments = ["pretrain", str(few_shards), str(run), *options(all_videos=False, optim__epochs=2, **shown)]
    trained = CliRunner().invoke(train_main, arguments)
    assert trained.exit_code == 0, trained.output
    splits = (["--split-column", "split"], ["--leave-one-out", "--target", "group"])
    for selection in [(*split, *network) for split in splits for network in ([], ["--untrained"])]:
        result = evaluate("retrieval", run, few_shards, "--clips", 1, "--workers", 0, *selection)
        assert result.exit_code == 0, result.output
    same = ["--clips", 1, "--workers", 0, "--split-column", "split"]
    for command in (["probe", run, few_shards, "--method", "knn"], ["decoupling", few_shards, "--both", run]):
        result = evaluate(*command, *same)
        assert result.exit_code == 0, result.output
    provenance = json.loads(next((run / "eval").glob("retrieval-*.json")).read_text())["provenance"]
    for kind in ("recognition", "auxiliary"):
        record = getattr(results, kind)(provenance)
        (run / "eval" / f"{kind}.json").write_text(json.dumps(record))
    return run


@pytest.fixture(scope="module")
def page(run_dir: Path) -> Path:
    result = evaluate("report", run_dir)
    assert result.exit_code == 0, result.output
    assert "not in the report" not in result.output
    return run_dir / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


def test_the_page_is_complete_and_small(page: Path, few_shards: Path) -> None:
    text = page.read_text()
    assert page.stat().st_size < MAX_BYTES
    assert re.findall(r'<section id="([\w-]+)">', text) == list(PARTS)
    labels = sorted({video.label for video in ShardSet(few_shards).videos})
    # Retrieval examples, then the three of the search demo.
    queries = text.count(">query</div>")
    assert queries == min(12, sum(v.splits["split"] == "test" for v in ShardSet(few_shards).videos)) + 3
    # Each neighbor is marked as right or wrong, by a word and by a symbol.
    assert text.count("✓ right</div>") + text.count("✗ wrong</div>") == 5 * queries
    assert text.count("data:image/jpeg") == 6 * queries + 2 * min(6, len(ShardSet(few_shards).videos))
    assert "if it has the query's label" in text, "examples are by label if there are any"
    for label in labels:
        assert label in text
    names = few_shards.parent.parent.parts[1:3]
    assert "/".join(names) not in text, "the page contains no absolute paths"
    assert str(page.parent) not in text
    assert text.count("<caption") == text.count("<table")
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text


def test_the_same_inputs_give_the_same_page(page: Path, run_dir: Path, tmp_path: Path) -> None:
    assert evaluate("report", run_dir, "--output", tmp_path / "again.html").exit_code == 0
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_sections_without_data_are_left_out_and_listed(run_dir: Path, few_shards: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (bare / name).write_bytes((run_dir / name).read_bytes())
    result = evaluate("report", bare)
    assert result.exit_code == 0, result.output
    text = (bare / "report.html").read_text()
    assert re.findall(r'<section id="([\w-]+)">', text) == ["glance", "run", "training", "left-out"]
    for kind in ("retrieval", "probe", "embedding map", "retrieval examples and motion vectors"):
        assert f"not in the report: {kind}: no" in result.output
    for kind in set(SECTIONS) - {"retrieval", "probe"}:  # nothing that a run of pre-training lacks
        assert f"not in the report: {kind}" not in result.output
    assert evaluate("report", bare, "--shards", few_shards).exit_code == 0
    assert '<section id="motion">' in (bare / "report.html").read_text()


def test_errors_are_one_line(tmp_path: Path, run_dir: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["report", tmp_path / "empty"], "not a run folder; give a folder created by `cmd-train`"),
        (["report", run_dir, "--shards", tmp_path / "empty"], "no index.json"),
    ):
        result = evaluate(*arguments)
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert message in result.output
        assert result.output.count("\n") == 1


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_in_chromium(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.show(page, width=width, dark=dark)
    # Collapsed parts count as well.
    browser.run("for (const d of document.querySelectorAll('details')) d.open = true;")
    assert browser.broken_images() == []
    assert browser.run("return document.images.length") > 20
    assert browser.errors() == []
    assert {address for address in browser.requests() if not address.startswith("data:")} == {page.as_uri()}
    assert browser.run("return document.documentElement.scrollWidth") <= width
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") != dark
    contrasts = browser.contrasts()
    assert len(contrasts) > 200
    assert [text for ratio, text in contrasts if ratio < WCAG_AA] == []
    assert browser.accessibility_problems() == []


def test_the_browser_checks_find_problems(browser: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(
        "<!DOCTYPE html><body style='background: #fff'><script>nosuch()</script>"
        "<img alt='lost' src='http://example.invalid/a.png'><div style='width: 900px'>wide</div>"
        "<p style='color: #aaa'>pale</p><p style='color: #000'>dark</p>"
    )
    browser.show(broken, width=360)
    rules = {line.partition(":")[0] for line in browser.accessibility_problems()}
    assert {"serious color-contrast", "serious html-has-lang", "moderate region"} <= rules
    errors: list[Any] = browser.errors()
    assert any("nosuch is not defined" in line for line in errors)
    assert browser.broken_images() == ["lost"]
    assert "http://example.invalid/a.png" in browser.requests()
    assert browser.run("return document.documentElement.scrollWidth") > 360
    ratios = {text.partition(": ")[2]: ratio for ratio, text in browser.contrasts()}
    assert ratios["dark"] == pytest.approx(21)
    assert ratios["pale"] == pytest.approx(2.32, abs=0.01)
