"""``cmd-eval evidence`` with two splits, one seed and a few steps on synthetic videos."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from cmd_eval.cli.main import main
from cmd_eval.experiments.plan import NETWORKS
from cmd_extract.cli.main import main as extract_main
from cmd_extract.shard.reader import ShardSet
from tests.command_line import call, train_here
from tests.integration.cmd_train.training import FEATURES, FIELDS

pytestmark = pytest.mark.slow

TINY = {name: value for name, value in FIELDS.items() if name not in FEATURES}
TINY |= {"optim.batch_size": 8, "data.workers": 0}
RECIPES = ("--recipe", "demo", "--auxiliary-recipe", "finetune-demo", "--steps", 2, "--auxiliary-steps", 2)
QUICK = (*RECIPES, "--seeds", 1, "--clips", 1, "--device", "cpu")
_SPEED = {"name": "extract_fps", "value": 640.5, "unit": "frames/s", "versus": "", "machine": "two cores"}
PAIRS = [f"{name}={value}" for name, value in TINY.items() if name != "optim.warmup_epochs"]


@pytest.fixture(scope="module", autouse=True)
def _train_in_this_process() -> Iterator[None]:
    # There are ten runs; processes are tested in test_auxiliary and in the unit tests.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmd_eval.experiments.jobs.run_cmd_train", train_here)
        yield


def evidence(shards: Path, out: Path, *options: object) -> Result:
    tiny = [argument for pair in PAIRS for argument in ("--set", pair, "--auxiliary-set", pair)]
    return call(main, "evidence", shards, out, *QUICK, *tiny, *options)


def extract(folder: Path, source: Path, every: int = 1, **cells: list[str]) -> Path:
    """Extract every n-th video of a manifest, with some columns changed or added."""
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
    """Two motions in front of six backgrounds; each split tests two of the backgrounds."""
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


def test_the_tables_are_also_written_as_markdown(first: tuple[Path, Result]) -> None:
    out, _ = first
    lines = (out / "eval" / "evidence.md").read_text().splitlines()
    row = next(row for row in record_of(out)["rows"] if (row["model"], row["readout"]) == ("both heads", "mean"))
    shares = [f"{100 * v['value']:.1f} ({100 * v['low']:.1f}-{100 * v['high']:.1f})" for v in row["by_label"].values()]
    assert f"| both heads, mean | {' | '.join(shares)} |" in lines
    header = next(number for number, line in enumerate(lines) if "mean of splits" in line)
    by_split = lines[header + 2].strip("| ").split(" | ")
    splits = [100 * split["by_label"]["R@1"]["value"] for split in row["by_split"]]
    assert by_split[3] == f"{sum(splits) / len(splits):.1f}"


def test_all_claims_are_in_one_table(first: tuple[Path, Result], shards: Path) -> None:
    out, result = first
    record = record_of(out)
    assert (record["kind"], record["split_columns"], record["size"]) == ("evidence", ["split", "split_b"], "small")
    rows = {row["model"] + (f" {row['readout']}" if row["readout"] else ""): row for row in record["rows"]}
    networks = (*NETWORKS, "untrained")
    readouts = ("mean", "ordered", "grid-ordered")
    assert list(rows) == [*(f"{n} {r}" for n in networks for r in readouts), "motion grids", "color histogram"]
    # Each split tests a third of the videos, half of them in both splits; by group all videos are queries.
    assert record["videos"] == {"by_label": 12, "by_group": 24}
    assert record["chance"]["by_label"] == pytest.approx({"R@1": 0.5, "R@5": 1.0, "R@10": 1.0, "probe": 0.5}, abs=0.03)
    assert rows["motion grids"]["by_label"]["R@1"]["value"] == 1.0
    assert rows["motion grids"]["by_label"]["probe"]["value"] == 1.0
    assert rows["color histogram"]["by_group"]["R@1"]["value"] > 0.8
    assert [split["split_column"] for split in rows["both heads mean"]["by_split"]] == ["split", "split_b"]
    differences = {
        (d["readout"], d["second"], d["target"], d["measure"]): d["difference"] for d in record["comparisons"]
    }
    assert len(differences) == 3 * 6 * 3
    for (readout, second, by, measure), found in differences.items():
        second = second if second in rows else f"{second} {readout}"
        both, other = (rows[name][f"by_{by}"][measure]["value"] for name in (f"both heads {readout}", second))
        assert found["value"] == pytest.approx(both - other)
        assert found["low"] <= found["value"] <= found["high"]
    assert record["auxiliary"]["pairs"] == 2
    assert record["auxiliary"]["pretraining"]["pairs"] == 2
    assert set(record["auxiliary"]["mean"]) == {"none", "motion", "pretrained"}
    assert [entry["name"] for entry in record["speed"]] == ["extract_fps"]
    assert record["provenance"]["data_hash"] == ShardSet(shards).data_hash
    for text in (
        "pre-training run 8 of 8: split_b, seed 0, motion head only, contrastive, about",
        "supervised run 6 of 6",
        "640.5",
    ):
        assert text in result.output
    assert f"{100 * rows['untrained mean']['by_label']['R@1']['value']:.1f} (" in result.output


def test_each_network_was_trained_with_its_heads_on_its_split(first: tuple[Path, Result]) -> None:
    out, _ = first
    for run in record_of(out)["runs"]:
        folder = out / run["run_dir"]
        settings = json.loads((folder / "config.json").read_text())["settings"]
        network = NETWORKS[run["network"]]
        assert (settings["model"]["context_head"], settings["model"]["motion_head"]) == (
            network.context,
            network.motion,
        )
        contrastive = run["network"] == "motion head only, contrastive"
        assert settings["loss"]["motion_target"] == ("features" if contrastive else "directions")
        assert settings["data"]["split_column"] == run["split_column"]
        # The warm-up takes the same share of the run as in the recipe.
        assert settings["optim"]["warmup_epochs"] == pytest.approx(settings["optim"]["epochs"] * 2 / 32, rel=1e-5)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, run["step"] + 1))


def test_run_again_it_trains_only_what_is_missing(first: tuple[Path, Result], shards: Path) -> None:
    out, _ = first
    before = record_of(out)
    done = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".safetensors", ".h5")}
    # As if killed at the end of two runs, before they were marked as finished.
    killed = [out / before["runs"][number]["run_dir"] for number in (1, 2)]
    for folder in killed:
        (folder / "finished").unlink()
    again = evidence(shards, out, "--jobs", 2)
    assert again.exit_code == 0, again.output
    assert again.output.count("(already done)") == 6 + 6
    for folder in killed:
        assert (folder / "finished").is_file()
        assert f"{folder.name}: " in again.output
    assert {path: path.stat().st_mtime_ns for path in done} == done
    after = record_of(out)
    for name in ("rows", "comparisons", "auxiliary", "runs", "chance", "speed"):
        assert after[name] == before[name]

    # More seeds would have to be trained: mismatches are reported before that.
    for options, message in (
        (("--set", "loss.temperature=0.2"), "loss.temperature: 0.1 is now 0.2"),
        (("--auxiliary-steps", 40), "auxiliary/split-seed0-none: contains a run with different settings (optim.epochs"),
    ):
        changed = evidence(shards, out, *options, "--seeds", 2)
        assert changed.exit_code == 1
        assert message in changed.output
        assert "use another OUT" in changed.output
        assert not list((out / "pretrain").glob("*seed1*"))


def test_the_report_shows_the_table_and_the_curves(first: tuple[Path, Result]) -> None:
    out, _ = first
    result = call(main, "report", out)
    assert result.exit_code == 0, result.output
    text = (out / "report.html").read_text()
    for content in (
        '<section id="evidence">',
        "both heads minus untrained",
        "Context task, top-1",
        "Motion task, top-1",
    ):
        assert content in text
    assert '<section id="auxiliary">' in text
    (out / record_of(out)["runs"][0]["run_dir"] / "metrics.jsonl").unlink()
    assert "not in the report: learning curves of" in call(main, "report", out).output


def test_the_default_split_is_that_of_the_training_run(first: tuple[Path, Result], shards: Path) -> None:
    out, _ = first
    run = next(run for run in record_of(out)["runs"] if run["split_column"] == "split_b")
    result = call(main, "retrieval", out / run["run_dir"], shards, "--clips", 1, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "Split column: split_b, as in the training run" in result.output
    undecided = call(main, "baseline", shards)
    assert undecided.exit_code == 1
    assert "2 split columns (split, split_b); choose one with --split-column" in undecided.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--split-column", "split9"), "'split9'"),
        (("--set", "model.motion_head=false"), "--set model.motion_head: this command sets it"),
        (("--auxiliary-set", "optim.epochs=3"), "use --steps and --auxiliary-steps"),
        (("--set", "optim.speed=3"), "optim.speed"),
        (("--set", "optim.batch_size=500"), "500"),
        (("--recipe", "finetune-demo"), "'finetune-demo' is not for cmd-train pretrain"),
        (("--seeds", "1", "--single-seeds", "2"), "single_seeds: 2 is more than seeds = 1"),
    ],
)
def test_invalid_input_is_reported_before_any_run(
    options: tuple[str, ...], message: str, shards: Path, tmp_path: Path
) -> None:
    result = evidence(shards, tmp_path / "out", *options)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert message in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("column", ["label", "group"])
def test_videos_without_labels_or_groups_are_refused(column: str, shards: Path, tmp_path: Path) -> None:
    bare = extract(tmp_path / "bare", shards.parent / "manifest.csv", every=3, **{column: [""] * 8})
    result = evidence(bare, tmp_path / "out")
    assert result.exit_code == 1
    assert f"{column}: no video in" in result.output
    assert not (tmp_path / "out").exists()


def test_an_unreadable_result_is_reported_before_any_run(shards: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "out" / "eval" / "evidence.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text('{"kind": "evid')
    result = evidence(shards, tmp_path / "out")
    assert result.exit_code == 1
    assert "evidence.json: not a result of cmd-eval" in result.output
    assert list((tmp_path / "out").iterdir()) == [earlier.parent]


def test_other_files_than_benchmark_results_are_refused(shards: Path, tmp_path: Path) -> None:
    for text, message in (
        ("{}", "no entry extract_fps"),
        ("[1]", "not a result file of the benchmarks"),
        ("x", "not a result"),
        (json.dumps([_SPEED | {"machine": "two cores; --quick: no measurement"}]), "--quick"),
    ):
        (tmp_path / "bench.json").write_text(text)
        result = evidence(shards, tmp_path / "out", "--bench", tmp_path / "bench.json")
        assert result.exit_code == 1
        assert message in result.output
    assert list(tmp_path.iterdir()) == [tmp_path / "bench.json"]
