from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from cmd_eval.cli.main import main as eval_main
from cmd_eval.report.build import write_report
from cmd_eval.report.inputs import find_shards, read_run
from cmd_eval.report.pictures import jpeg_picture
from cmd_eval.report.summary import main_results, pretext_sentences, summarize, task_of
from cmd_extract.schema import VideoEntry
from cmd_extract.shard.reader import ShardSet
from cmd_train.config import build_config
from tests.indexes import write_index
from tests.unit.cmd_eval.report import result_files as results
from tests.unit.cmd_extract.shard.test_reader_writer import entry_of, write_shard

SETTINGS = build_config("demo").as_dict()


def make_run(folder: Path, lines: int = 2) -> Path:
    (folder / "eval").mkdir(parents=True)
    config = {"settings": SETTINGS, "data_hash": "d" * 64, "recipe": "demo", "init": None}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [{"step": n + 1, "loss": 1.0, "context_top1": 0.5, "context_candidates": 8} for n in range(lines)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def put(run: Path, record: dict, name: str) -> None:
    (run / "eval" / name).write_text(json.dumps({key: value for key, value in record.items() if key != "file"}))


def test_a_run_is_read_with_its_results(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    put(run, results.retrieval(results.provenance(created="2026-02-01T00:00:00+00:00"), value=0.9), "a.json")
    put(run, results.retrieval(), "b.json")
    put(run, {"kind": "something"}, "strange.json")
    (run / "eval" / "cut.json").write_text('{"kind": "prob')
    inputs = read_run(run)
    assert [line["step"] for line in inputs.metrics] == [1, 2]
    assert [record["file"] for record in inputs.results["retrieval"]] == ["b.json", "a.json"], "oldest first"
    assert [Path(line.split(":")[0]).name for line in inputs.unread] == ["cut.json", "strange.json"]


def test_an_incomplete_last_line_is_ignored_and_damage_is_reported(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 3, "lo')
    assert len(read_run(run).metrics) == 2
    metrics.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a line of metrics"):
        read_run(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "not a run folder; give a folder created by `cmd-train`"),
        (lambda run: (run / "metrics.jsonl").unlink(), r"no metrics \(metrics.jsonl\), checkpoints or results found"),
        (lambda run: (run / "config.json").write_text("{"), "damaged"),
        (lambda run: (run / "config.json").write_text("{}"), "no settings"),
    ],
)
def test_other_folders_are_refused_in_one_line(change: object, message: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    change(run)  # type: ignore[operator] # one of several
    with pytest.raises(ValueError, match=message) as caught:
        write_report(run, tmp_path / "report.html")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_with_results_only_has_a_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "eval").mkdir(parents=True)
    given = results.provenance(checkpoint=None, settings=SETTINGS)
    put(out, results.auxiliary(given), "auxiliary.json")
    page = tmp_path / "report.html"
    written = write_report(out, page)
    assert "+12.5 points" in page.read_text()
    assert any(line.startswith("training curves") for line in written.left_out)
    assert task_of(read_run(out)) == "Evaluation"


def test_shards_are_opened_at_the_recorded_or_the_given_path(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    shards = indexed_shards(tmp_path / "shards")
    assert find_shards((), read_run(run)) == (None, "no result records the path of the shards")
    put(run, results.retrieval(results.provenance(shards=str(*shards.folders))), "r.json")
    assert find_shards((), read_run(run)) == (None, "shards not found at the recorded path")
    with pytest.raises(ValueError, match="not the shards of"):
        find_shards(shards.folders, read_run(run))
    known = results.provenance(shards=str(*shards.folders), data_hash=shards.data_hash)
    put(run, results.retrieval(known), "r.json")
    for given in ((), shards.folders):
        found, reason = find_shards(given, read_run(run))
        assert found is not None
        assert found.data_hash == shards.data_hash
        assert reason == ""


def indexed_shards(folder: Path) -> ShardSet:
    path, _ = write_shard(folder)
    columns = {"label": ["l"] * 5, "group": ["g"] * 5, "split1": ["test", *["train"] * 4]}
    write_index(folder, [entry_of(path)], columns)
    return ShardSet(folder)


def test_summary_lists_run_details(tmp_path: Path) -> None:
    run = make_run(tmp_path / "my run")
    put(run, results.retrieval(), "r.json")
    other_order = {"torch": "2", "python": "3.11"}
    put(run, results.probe(results.provenance(data_hash="e" * 64, versions=other_order)), "p.json")
    summary = summarize(read_run(run), None)
    assert (summary.name, summary.task) == ("my run", "Pre-training")
    facts = [f"{name}: {value}" for name, value in summary.facts]
    assert "recipe: demo" in facts
    assert "training: 2 steps, 32 epochs planned, batch size 16" in facts
    assert f"checkpoint: run/checkpoints/step-00000009 (sha256 {'c' * 12})" in facts
    assert f"evaluation data: data hash {'d' * 12} (same as the training data)" in facts
    assert f"evaluation data: data hash {'e' * 12} (not the training data)" in facts
    assert [fact for fact in facts if fact.startswith("versions")] == ["versions: python 3.11, torch 2"]
    assert "results created: 2026-01-02 03:04 UTC" in facts
    assert ("run.seed", "0") in summary.settings
    assert summary.pretext == ["Context task, last 2 steps: top-1 accuracy 50.0 % among 8 candidates (chance 12 %)."]


def test_summary_of_fine_tuning_names_the_initial_weights(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = {"data_hash": "d" * 64, "part": "train", "split_column": "split1"}
    init = {"source": "runs/a", "sha256": "a" * 64, "part": "backbone", "trained_on": before}
    config = json.loads((run / "config.json").read_text()) | {"init": init}
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0, "classification_loss": 2.0}) + "\n")
    summary = summarize(read_run(run), None)
    assert summary.task == "Fine-tuning"
    text = f"runs/a (sha256 {'a' * 12}), backbone, trained on data hash {'d' * 12}"
    assert ("initial weights", text) in summary.facts
    # The training data of imported weights are unknown.
    config["init"]["trained_on"]["data_hash"] = None
    (run / "config.json").write_text(json.dumps(config))
    facts = dict(summarize(read_run(run), None).facts)
    assert facts["initial weights"].endswith("backbone, trained on unknown data")
    write_report(run, tmp_path / "report.html")


def test_the_page_of_imported_weights_explains_that_nothing_was_trained(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", lines=0)
    imported = {"source": "published/r3d.pth", "sha256": "a" * 64, "part": "backbone"}
    checkpoint = run / "checkpoints" / "step-00000000"
    checkpoint.mkdir(parents=True)
    (run / "config.json").unlink()
    (checkpoint / "config.json").write_text(
        json.dumps({"settings": SETTINGS, "data_hash": None, "imported": imported}), "utf-8"
    )
    summary = summarize(read_run(run), None)
    sentence = f"Nothing was trained here: the weights were imported from published/r3d.pth (sha256 {'a' * 12})"
    assert summary.pretext == [f"{sentence}, backbone. There are no results yet."]
    facts = dict(summary.facts)
    assert facts["training data"] == "unknown"
    assert facts.keys().isdisjoint({"training", "training videos", "seed"})
    write_report(run, tmp_path / "report.html")
    assert sentence in (tmp_path / "report.html").read_text("utf-8")
    put(run, results.retrieval(), "r.json")
    later = summarize(read_run(run), None)
    assert later.pretext == [f"{sentence}, backbone."]
    assert dict(later.facts)["evaluation data"] == f"data hash {'d' * 12}"


def test_main_results_are_of_the_first_split_and_the_newest_file() -> None:
    old, new = results.retrieval(value=0.2), results.retrieval(value=0.7)
    second = {**new["splits"][0], "split_column": "split2"}
    new["splits"].append(second)
    (found,) = main_results({"retrieval": [old, new]})
    assert (found.measure, found.details) == ("Retrieval by label, R@1", "trained network, step 9, split1")
    assert (found.value, found.low, found.chance) == (0.7, pytest.approx(0.6), 0.33)
    kinds = {"probe": [results.probe()], "recognition": [results.recognition()]}
    assert [f.measure for f in main_results(kinds)] == [
        "Fine-tuned by label, top-1",
        "Logistic regression by label, top-1",
    ]
    assert pretext_sentences([]) == []
    lines = [{"context_top1": 0.5, "context_candidates": 8, "motion_top1": 0.6, "motion_majority": 0.25}] * 3
    context, motion = pretext_sentences(lines)
    assert context == "Context task, last 3 steps: top-1 accuracy 50.0 % among 8 candidates (chance 12 %)."
    assert motion.endswith("top-1 accuracy 60.0 % at moving positions (most frequent direction: 25.0 %).")


def test_main_results_of_different_parts_and_clips_are_all_shown() -> None:
    test, val = results.retrieval(value=0.2), results.retrieval(value=0.9)
    val["splits"][0]["test_part"] = "val"
    few = results.retrieval(results.provenance(clips=1), value=0.6)
    tuned, tuned_val = results.recognition(), results.recognition()
    tuned_val["splits"][0]["test_part"] = "val"
    found = main_results({"retrieval": [test, val, few], "recognition": [tuned, tuned_val]})
    assert [(f.details, f.value) for f in found] == [
        ("trained network, step 9, split1", 0.6),
        ("trained network, step 9, split1 (val / train)", 0.6),
        ("trained network, step 9, split1", 0.2),
        ("trained network, step 9, split1 (val / train)", 0.9),
        ("trained network, step 9, 1 clip per video, split1", 0.6),
    ]


def test_problems_are_listed_and_the_rest_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    shards = indexed_shards(tmp_path / "shards")
    known = results.provenance(shards=str(*shards.folders), data_hash=shards.data_hash)
    record = results.retrieval(known)
    here = shards.videos[0].video_id
    neighbors = [{"video": here, "label": "x", "similarity": 0.5, "hit": True}]
    record["splits"][0]["examples"] = [
        {"query": query, "query_label": "x", "neighbors": neighbors} for query in ("gone", here)
    ]
    put(run, record, "r.json")
    strange = results.probe()
    strange["splits"][0]["classes"] = ["a\udcff", "b", "c"]
    put(run, strange, "p.json")
    wrong_time = results.recognition(results.provenance(created="yesterday"))
    put(run, wrong_time, "time.json")

    def draw(_: object, entry: VideoEntry) -> None:
        raise ValueError(f"{entry.video_id}: cannot decode a stored image")

    monkeypatch.setattr("cmd_eval.report.build.draw_motion", draw)
    monkeypatch.setattr(
        "cmd_eval.report.pictures.draw_strip", lambda *_: jpeg_picture(Image.new("RGB", (3, 3)), "strip")
    )
    result = CliRunner().invoke(eval_main, ["report", str(run)])
    assert result.exit_code == 0, result.output
    page = (run / "report.html").read_text("utf-8")
    assert "retrieval example of gone: r.json lists gone" in result.output
    assert f"motion vectors of {here}: {here}: cannot decode a stored image" in result.output
    assert "time.json: incomplete or invalid recognition result (Invalid RFC3339 encoded datetime" in result.output
    assert page.count(">query</div>") == 1
    assert "a\\udcff" in page


def test_incomplete_results_are_listed_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    put(run, results.retrieval(), "good.json")
    broken = results.probe()
    del broken["splits"][0]["top1"]
    put(run, broken, "broken.json")
    uneven = results.recognition()
    uneven["splits"][0]["confusion"] = [[1]]
    put(run, uneven, "uneven.json")
    written = write_report(run, tmp_path / "report.html")
    left_out = "\n".join(written.left_out)
    assert "broken.json: incomplete or invalid probe result (Object missing required field `top1`" in left_out
    assert "uneven.json: incomplete or invalid recognition result (confusion: 1 entries for 4 classes" in left_out
    assert "probe: no result; run `cmd-eval probe" in left_out
    assert "recognition: no result" not in left_out, "a pre-training run has no classifier"
    page = (tmp_path / "report.html").read_text()
    assert "trained network, step 9" in page
    assert 'id="probe"' not in page


def test_text_from_users_is_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<b>run")
    nasty = '<script>alert("1")</script>'
    record = results.probe()
    record["splits"][0]["classes"] = [nasty, "b", "c"]
    record["splits"][0]["per_class"][0]["class"] = nasty
    record["notes"] = [nasty]
    put(run, record, "p.json")
    write_report(run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<b>" not in page
