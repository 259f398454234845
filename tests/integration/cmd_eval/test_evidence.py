"""The evidence through the real command line: two splits, one seed, a few steps on synthesized videos."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from cmd_eval.cli.main import main
from cmd_extract.cli.main import main as extract_main
from cmd_extract.shard.reader import ShardSet
from tests.command_line import call, train_here
from tests.integration.cmd_train.training import FIELDS

pytestmark = pytest.mark.slow

TINY = {**FIELDS, "optim.batch_size": 8, "data.workers": 0}
WORDS = ("--recipe", "demo", "--auxiliary-recipe", "finetune-demo", "--steps", 2, "--auxiliary-steps", 2)
QUICK = (*WORDS, "--seeds", 1, "--clips", 1, "--device", "cpu")
_SPEED = {"name": "extract_fps", "value": 640.5, "unit": "frames/s", "versus": "", "machine": "two cores"}
PAIRS = [f"{name}={value}" for name, value in TINY.items() if name != "optim.warmup_epochs"]


@pytest.fixture(scope="module", autouse=True)
def _trainings_in_this_process() -> Iterator[None]:
    # Ten of them; that each gets a process of its own is tested in test_auxiliary and unit/test_recognition.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmd_eval.experiments.run.run_cmd_train", train_here)
        yield


def evidence(shards: Path, out: Path, *words: object) -> Result:
    tiny = [word for pair in PAIRS for word in ("--set", pair, "--auxiliary-set", pair)]
    return call(main, "evidence", shards, out, *QUICK, *tiny, *words)


def extract(folder: Path, source: Path, every: int = 1, **cells: list[str]) -> Path:
    """Every so-many-th video of a manifest with some of its columns changed, or added."""
    header, *rows = source.read_text().splitlines()
    rows = rows[::every]
    names = header.split(",")
    table = [dict(zip(names, row.split(","), strict=True)) for row in rows]
    for number, row in enumerate(table):
        row["path"] = str(source.parent / row["path"])
        row |= {name: values[number] for name, values in cells.items()}
    folder.mkdir()
    lines = [",".join(row.values()) for row in table]
    (folder / "manifest.csv").write_text("\n".join([",".join(table[0]), *lines]) + "\n")
    result = call(extract_main, "run", folder / "manifest.csv", folder / "shards", "--workers", 2)
    assert result.exit_code == 0, result.output
    return folder / "shards"


@pytest.fixture(scope="module")
def shards(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two motions before six backgrounds; each split tests two of the backgrounds."""
    manifest = few_shards.parent / "videos" / "manifest.csv"
    scenes = [video.group for video in ShardSet(few_shards).videos]
    number = {scene: n for n, scene in enumerate(sorted(set(scenes)))}
    first, second = (
        ["test" if number[scene] in tested else "train" for scene in scenes] for tested in ((0, 1), (1, 2))
    )
    return extract(tmp_path_factory.mktemp("evidence") / "data", manifest, split=first, split_b=second)


@pytest.fixture(scope="module")
def first(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("evidence") / "out"
    bench = out.parent / "bench.json"
    bench.write_text(json.dumps([_SPEED, _SPEED | {"name": "loader_vs_jpeg"}]))
    result = evidence(shards, out, "--bench", bench)
    assert result.exit_code == 0, result.output
    return out, result


def record_of(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "eval" / "evidence.json").read_text())
    return record


def test_all_claims_are_in_one_table(first: tuple[Path, Result], shards: Path) -> None:
    out, result = first
    record = record_of(out)
    assert (record["kind"], record["split_columns"], record["size"]) == ("evidence", ["split", "split_b"], "small")
    rows = {row["model"]: row for row in record["rows"]}
    assert list(rows) == [
        *("both heads", "context head only", "motion head only", "untrained", "motion grids", "colour histogram")
    ]
    # A third of the videos is tested in each split, half of these in both; all ask by group.
    assert record["videos"] == {"by_label": 12, "by_group": 24}
    assert record["chance"]["by_label"] == pytest.approx({"R@1": 0.5, "R@5": 1.0, "R@10": 1.0, "probe": 0.5}, abs=0.03)
    assert rows["motion grids"]["by_label"]["R@1"]["value"] == 1.0
    assert rows["motion grids"]["by_label"]["probe"]["value"] == 1.0
    assert rows["colour histogram"]["by_group"]["R@1"]["value"] > 0.8
    assert [split["split_column"] for split in rows["both heads"]["by_split"]] == ["split", "split_b"]
    differences = {(d["second"], d["by"], d["measure"]): d["difference"] for d in record["comparisons"]}
    assert len(differences) == 15
    for (second, by, measure), found in differences.items():
        both, other = (rows[name][f"by_{by}"][measure]["value"] for name in ("both heads", second))
        assert found["value"] == pytest.approx(both - other)
        assert found["low"] <= found["value"] <= found["high"]
    assert record["auxiliary"]["pairs"] == 2
    assert [entry["name"] for entry in record["speed"]] == ["extract_fps"]
    assert record["provenance"]["data_hash"] == ShardSet(shards).data_hash
    for told in ("pre-training run 6 of 6: split_b, seed 0, motion head only, about", "supervised run 4 of 4", "640.5"):
        assert told in result.output
    assert f"{100 * rows['untrained']['by_label']['R@1']['value']:.1f} (" in result.output


def test_each_row_was_trained_for_its_task_on_its_split(first: tuple[Path, Result]) -> None:
    out, _ = first
    for run in record_of(out)["runs"]:
        folder = out / run["run_dir"]
        settings = json.loads((folder / "config.json").read_text())["settings"]
        heads = (settings["model"]["context_head"], settings["model"]["motion_head"])
        names = {(True, True): "both heads", (True, False): "context head only", (False, True): "motion head only"}
        assert names[heads] == run["heads"]
        assert settings["data"]["split_column"] == run["split_column"]
        # The warm-up takes the share that it has in the recipe.
        assert settings["optim"]["warmup_epochs"] == pytest.approx(settings["optim"]["epochs"] * 2 / 42, rel=1e-5)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, run["step"] + 1))


def test_started_again_it_runs_only_what_is_missing(first: tuple[Path, Result], shards: Path) -> None:
    out, _ = first
    before = record_of(out)
    done = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".safetensors", ".h5")}
    # What a kill leaves of two runs: everything but the word that they are finished, and none of their features.
    killed = [out / before["runs"][number]["run_dir"] for number in (1, 2)]
    for folder in killed:
        (folder / "finished").unlink()
    again = evidence(shards, out, "--at-once", 2)
    assert again.exit_code == 0, again.output
    assert again.output.count("(done before)") == 4 + 4
    for folder in killed:
        assert (folder / "finished").is_file()
        assert f"{folder.name}: " in again.output
    assert {path: path.stat().st_mtime_ns for path in done} == done
    after = record_of(out)
    for name in ("rows", "comparisons", "auxiliary", "runs", "chance", "speed"):
        assert after[name] == before[name]

    # More seeds would have to be trained: what does not fit is told before that.
    for words, told in (
        (("--set", "loss.temperature=0.2"), "loss.temperature: 0.1 is now 0.2"),
        (("--auxiliary-steps", 40), "auxiliary/split-seed0-none: holds a training of something else (optim.epochs"),
        (("--clips", 2), "of 1 clips a video, not 2"),
    ):
        changed = evidence(shards, out, *words, "--seeds", 2)
        assert changed.exit_code == 1
        assert told in changed.output
        assert "give another OUT" in changed.output
        assert not list((out / "pretrain").glob("*seed1*"))


def test_the_report_shows_the_table_and_the_curves(first: tuple[Path, Result]) -> None:
    out, _ = first
    result = call(main, "report", out)
    assert result.exit_code == 0, result.output
    text = (out / "report.html").read_text()
    for told in ('<section id="evidence">', "both heads less untrained", "Context task, top-1", "Motion task, top-1"):
        assert told in text
    assert '<section id="auxiliary">' in text
    (out / record_of(out)["runs"][0]["run_dir"] / "metrics.jsonl").unlink()
    assert "not in the report: learning curves of" in call(main, "report", out).output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--split-column", "split9"), "'split9'"),
        (("--set", "model.motion_head=false"), "--set model.motion_head: this command sets it"),
        (("--auxiliary-set", "optim.epochs=3"), "--auxiliary-steps change the length"),
        (("--set", "optim.speed=3"), "optim.speed"),
        (("--set", "optim.batch_size=500"), "500"),
        (("--recipe", "finetune-demo"), "'finetune-demo' is not for cmd-train pretrain"),
        (("--seeds", "1", "--single-seeds", "2"), "single_seeds: 2 is more than seeds = 1"),
    ],
)
def test_bad_input_is_told_before_any_run(words: tuple[str, ...], told: str, shards: Path, tmp_path: Path) -> None:
    result = evidence(shards, tmp_path / "out", *words)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert told in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("column", ["label", "group"])
def test_videos_without_labels_or_groups_are_refused(
    column: str, few_shards: Path, shards: Path, tmp_path: Path
) -> None:
    bare = extract(tmp_path / "bare", shards.parent / "manifest.csv", every=3, **{column: [""] * 8})
    result = evidence(bare, tmp_path / "out")
    assert result.exit_code == 1
    assert f"{column}: no video of" in result.output
    assert not (tmp_path / "out").exists()


def test_a_result_that_cannot_be_read_is_told_before_any_run(shards: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "out" / "eval" / "evidence.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text('{"kind": "evid')
    result = evidence(shards, tmp_path / "out")
    assert result.exit_code == 1
    assert "evidence.json: not a result of cmd-eval" in result.output
    assert list((tmp_path / "out").iterdir()) == [earlier.parent]


def test_a_file_that_is_not_of_the_benchmarks_is_refused(shards: Path, tmp_path: Path) -> None:
    for text, told in (
        ("{}", "no entry extract_fps"),
        ("[1]", "not a result of the benchmarks"),
        ("x", "not a result"),
        (json.dumps([_SPEED | {"machine": "two cores; --quick: no measurement"}]), "--quick"),
    ):
        (tmp_path / "bench.json").write_text(text)
        result = evidence(shards, tmp_path / "out", "--bench", tmp_path / "bench.json")
        assert result.exit_code == 1
        assert told in result.output
    assert list(tmp_path.iterdir()) == [tmp_path / "bench.json"]
