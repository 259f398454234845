"""Evaluation of stored features: probes, retrieval, search, comparison of networks, features of other models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmd_eval.features.store import read_features
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import load_checkpoint
from tests.integration.cmd_eval.checkpoint_runs import QUICK, SPLIT, evaluate, make_run


def test_probe_and_leave_one_out_on_features(embeddings: Path, run_dir: Path) -> None:
    result = evaluate("probe", embeddings, *SPLIT, "--method", "knn", "--confusion")
    assert result.exit_code == 0, result.output
    record = json.loads((run_dir / "eval" / "probe-knn-split-label-3-clips.json").read_text())
    assert record["kind"] == "probe"
    assert record["provenance"]["checkpoint_sha256"] == load_checkpoint(run_dir).weights_hash
    result = evaluate("retrieval", embeddings, "--leave-one-out", "--target", "group", "--per-class")
    assert result.exit_code == 0, result.output
    record = json.loads((run_dir / "eval" / "retrieval-leave-one-out-group-3-clips.json").read_text())
    assert (record["splits"][0]["queries"], record["splits"][0]["gallery"]) == (24, 23)


def test_the_baseline_can_be_probed(few_shards: Path, tmp_path: Path) -> None:
    features, output = tmp_path / "motion.h5", tmp_path / "baseline.json"
    result = evaluate("baseline", few_shards, *SPLIT, "--write-features", features, "--output", output)
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())
    assert record["provenance"]["features"] == "motion descriptor"
    assert record["splits"][0]["recall"]["R@1"]["value"] == 1.0, "motion vectors distinguish left and up"
    again = evaluate("retrieval", features, *SPLIT, "--output", tmp_path / "again.json")
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "again.json").read_text())["splits"] == record["splits"]
    probed = evaluate("probe", features, *SPLIT)
    assert probed.exit_code == 0, probed.output
    searched = evaluate("search", next(iter(few_shards.glob("*.h5"))), "--embeddings", features)
    assert searched.exit_code == 1, searched.output
    assert "contains motion grids features, not those of a checkpoint" in searched.output
    assert (
        json.loads((tmp_path / "probe-logistic-split-label-motion-descriptor.json").read_text())["splits"][0]["top1"][
            "value"
        ]
        == 1.0
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("retrieval", "EMBEDDINGS", "SHARDS", *SPLIT), "remove SHARDS"),
        (("retrieval", "EMBEDDINGS", "--untrained"), "--untrained and --fresh"),
        (("retrieval", "EMBEDDINGS", "--clips", "5"), "contains 3 clips per video, not 5"),
        (("retrieval", "RUN"), "SHARDS is required"),
        (("retrieval", "EMBEDDINGS", "--split-column", "split9"), "split9"),
        (("probe", "EMBEDDINGS", *SPLIT, "--test-part", "val"), "'val'"),
        (("probe", "EMBEDDINGS", *SPLIT, "--test-part", "train"), "is both a query and in the gallery"),
        (("decoupling", "SHARDS", "--motion", "RUN", *SPLIT), "trained for context and motion"),
    ],
)
def test_user_errors_are_reported_in_one_line(
    arguments: tuple[str, ...], words: str, embeddings: Path, run_dir: Path, few_shards: Path
) -> None:
    places = {"EMBEDDINGS": embeddings, "RUN": run_dir, "SHARDS": few_shards}
    result = evaluate(*(places.get(word, word) for word in arguments))
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output


def test_search_finds_the_video_itself_first(
    embeddings: Path, few_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    video = next((few_shards.parent / "videos").glob("**/up-*.mp4"))
    result = evaluate("search", video, "--embeddings", embeddings, "--count", 3, "--device", "cpu")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert video.stem in lines[0]
    assert "similarity 1.000" in lines[0]
    assert "(the same file)" in lines[0]
    with Image.open(tmp_path / "search.png") as picture:
        header = ShardSet(few_shards).header
        assert picture.width > 6 * header.frame_width
        assert picture.height > 4 * header.frame_height
        # The first result is the query itself, so its frames appear twice.
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    frame = pixels[33 : 33 + header.frame_height, 10 : 10 + header.frame_width]
    shift = header.frame_height + 15 + 4 * 4
    below = pixels[33 + shift : 33 + shift + header.frame_height, 10 : 10 + header.frame_width]
    assert frame.std() > 0
    np.testing.assert_array_equal(frame, below)


def test_search_works_in_a_job_array(
    embeddings: Path, few_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The environment of the batch script of one of several tasks, which may have nothing to do with extraction.
    array = {"ID": "6", "COUNT": "5", "MIN": "2", "MAX": "10", "STEP": "2"}
    job = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    job |= {"SLURM_NTASKS": "2", "SLURM_CPUS_ON_NODE": "1"}
    for name, value in (job | {f"SLURM_ARRAY_TASK_{name}": value for name, value in array.items()}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    video = next((few_shards.parent / "videos").glob("**/up-*.mp4"))
    result = evaluate("search", video, "--embeddings", embeddings, "--count", 1, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "(the same file)" in result.stdout.splitlines()[0]


def test_search_reports_why_it_failed(embeddings: Path, few_shards: Path, run_dir: Path, tmp_path: Path) -> None:
    bad = tmp_path / "notes.mp4"
    bad.write_text("no video")
    video = next((few_shards.parent / "videos").glob("**/up-*.mp4"))
    moved = make_run(tmp_path / "other", few_shards, run__seed=5)
    picture = tmp_path / "search.png"
    for name, options, words in (
        (bad, (), "notes.mp4: cannot be extracted (probe: "),
        (video, ("--output", "x.gif"), "must end in"),
        (video, ("--checkpoint", moved), "not the checkpoint of"),
        (video, ("--shards", tmp_path), "no index.json"),
    ):
        result = evaluate("search", name, "--embeddings", embeddings, "--output", picture, *options)
        assert result.exit_code == 1
        assert words in result.output
        assert len(result.output.strip().splitlines()) == 1
    assert not picture.exists()
    # A checkpoint that has moved is found with --checkpoint.
    gone = tmp_path / "moved"
    shutil.copytree(run_dir, gone)
    result = evaluate("search", video, "--embeddings", embeddings, "--output", picture, "--checkpoint", gone)
    assert result.exit_code == 0, result.output


def test_decoupling_compares_networks(run_dir: Path, few_shards: Path, tmp_path: Path) -> None:
    context = make_run(tmp_path / "context", few_shards, model__motion_head=False)
    output = tmp_path / "decoupling.json"
    options = (*SPLIT, "--clips", 1, *QUICK, "--with-grids", "--output", output)
    copy = tmp_path / "both"
    shutil.copytree(run_dir / "checkpoints", copy / "checkpoints")
    result = evaluate("decoupling", few_shards, "--both", copy, "--context", context, *options)
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())
    assert [row["model"] for row in record["rows"]] == ["both heads", "context head only", "motion grids"]
    assert record["rows"][1]["checkpoint_sha256"] == load_checkpoint(context).weights_hash
    for row in record["rows"]:
        for by in ("by_label", "by_context"):
            for figure in (row[by]["retrieval"], row[by]["probe"]):
                assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert record["rows"][2]["by_label"]["retrieval"]["value"] == 1.0
    assert 0.4 < record["chance"]["by_label"]["probe"] < 0.6, "two labels"
    assert 0.1 < record["chance"]["by_context"]["retrieval"] < 0.2, "six contexts"
    assert record["videos"] == {"by_label": 12, "by_context": 24}


def test_features_of_another_model_are_evaluated_like_our_own(
    embeddings: Path, few_shards: Path, tmp_path: Path
) -> None:
    exported = evaluate("export-features", embeddings, tmp_path / "other.npy", "--clips")
    assert exported.exit_code == 0, exported.output
    out = tmp_path / "other.h5"
    files = (tmp_path / "other.npy", tmp_path / "other.csv")
    imported = evaluate("import-features", *files, out, "--shards", few_shards)
    assert imported.exit_code == 0, imported.output
    assert f"{out}: features of 24 videos, 3 clips per video, 64 values each" in imported.output
    for command in (("retrieval", *SPLIT), ("probe", "--method", "knn", *SPLIT)):
        records = []
        for source in (embeddings, out):
            result = evaluate(command[0], source, *command[1:], "--output", tmp_path / "result.json")
            assert result.exit_code == 0, result.output
            records.append(json.loads((tmp_path / "result.json").read_text()))
        assert records[0]["splits"] == records[1]["splits"]
        assert records[1]["provenance"]["features"] == "other"
        assert "other: imported features; the training data of their model are unknown" in records[1]["notes"]
    # Nothing can be embedded by an unknown model, but its videos can be queries.
    query = read_features(out).videos.ids[5]
    video = next((few_shards.parent / "videos").glob("**/up-*.mp4"))
    refused = evaluate("search", video, "--embeddings", out)
    assert "contains other features, not those of a checkpoint" in refused.output
    found = [
        evaluate("search", query, "--embeddings", path, "--output", tmp_path / "s.png") for path in (embeddings, out)
    ]
    assert [result.exit_code for result in found] == [0, 0]
    assert found[0].stdout == found[1].stdout
    lines = found[0].stdout.splitlines()
    assert len(lines) == 6
    assert query not in "".join(line.split()[1] for line in lines[:5])
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.height > 6 * ShardSet(few_shards).header.frame_height
    unknown = evaluate("search", "nobody", "--embeddings", out)
    assert f"nobody: neither a video file nor the id of a video in {out}" in unknown.output


def test_features_imported_without_shards(embeddings: Path, few_shards: Path, tmp_path: Path) -> None:
    assert evaluate("export-features", embeddings, tmp_path / "f.npy").exit_code == 0
    out, table = tmp_path / "out.h5", tmp_path / "f.csv"
    assert evaluate("import-features", tmp_path / "f.npy", table, out).exit_code == 0
    assert evaluate("retrieval", out, *SPLIT).exit_code == 0
    assert (tmp_path / "retrieval-split-label-f.json").is_file()
    ids = read_features(out).videos.ids
    picture = tmp_path / "search.png"
    found = evaluate("search", ids[0], "--embeddings", out, "--count", 2, "--output", picture)
    assert found.exit_code == 0, found.output
    assert "no picture:" in found.output
    assert not picture.exists()
    assert evaluate("search", ids[0], "--embeddings", out, "--shards", few_shards, "--output", picture).exit_code == 0
    assert picture.exists()
    lines = table.read_text().splitlines(keepends=True)
    for rows, message in (
        (lines[:-1], "f.csv: 23 videos, but"),
        ([*lines[:-1], lines[1]], f"line 25: id '{ids[0]}' is also in line 2"),
        ([lines[0], "x" + lines[1], *lines[2:]], f"f.csv: 1 videos are not in {few_shards}: x{ids[0]}"),
    ):
        table.write_text("".join(rows))
        refused = evaluate("import-features", tmp_path / "f.npy", table, tmp_path / "bad.h5", "--shards", few_shards)
        assert refused.exit_code == 1
        assert message in refused.output
        assert len(refused.output.strip().splitlines()) == 1
    assert not (tmp_path / "bad.h5").exists()
