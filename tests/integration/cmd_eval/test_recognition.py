"""Tests of fine-tuned networks through the real command line, on synthetic videos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cmd_eval.cli.main import main as eval_main
from cmd_extract.cli.main import main as extract_main
from cmd_train.checkpoints.files import load_checkpoint
from tests.command_line import call
from tests.integration.cmd_train.finetuning import finetune


def test_recognition_is_printed_and_written(tuned: Path, few_shards: Path, tmp_path: Path) -> None:
    result = call(eval_main, "recognition", tuned, few_shards, "--clips", 3, "--workers", 0)
    assert result.exit_code == 0, result.output
    record = json.loads((tuned / "eval" / "recognition-split-3-clips.json").read_text())
    assert (record["kind"], record["format"], record["method"], record["clips"]) == ("recognition", 1, "finetuned", 3)
    (split,) = record["splits"]
    assert (split["split_column"], split["train_part"], split["test_part"]) == ("split", "train", "test")
    assert split["train"] == 12
    assert f"top-1 {split['top1']['value']:.1%}" in result.output
    assert sum(map(sum, split["confusion"])) == split["test"] == len(split["videos"])
    assert split["top1"]["value"] == sum(row["top1"] for row in split["videos"]) / split["test"]
    checkpoint = load_checkpoint(tuned)
    provenance = record["provenance"]
    assert provenance["checkpoint_sha256"] == checkpoint.weights_hash
    assert provenance["settings"] == checkpoint.config["settings"]
    assert provenance["trained_on"] == provenance["data_hash"]
    assert provenance["command"].startswith("cmd-eval recognition")
    assert "top-5 is not meaningful" in result.output
    assert "6 groups are in both" in result.output
    assert "trained on" not in result.output

    assert split["chance"] == pytest.approx(0.5), "both classes have the same number of videos"
    page = call(eval_main, "report", tuned)
    assert page.exit_code == 0, page.output
    assert "incomplete or invalid" not in page.output
    text = (tuned / "report.html").read_text()
    assert '<section id="recognition">' in text
    assert "trained network, step 2, 3 clips per video" in text
    assert f"{100 * split['top1']['value']:.1f}" in text

    several = call(eval_main, "recognition", tuned, tuned, few_shards, "--clips", 1, "--output", tmp_path / "all.json")
    assert several.exit_code == 0, several.output
    both = json.loads((tmp_path / "all.json").read_text())
    assert len(both["splits"]) == 2
    assert both["mean"][0]["top1"]["spread"] == 0
    assert "over 2 results" in several.output
    assert both["splits"][0]["provenance"]["checkpoint_sha256"] == checkpoint.weights_hash


def test_training_videos_are_rejected_as_test_videos(tuned: Path, few_shards: Path, tmp_path: Path) -> None:
    result = call(
        eval_main, "recognition", tuned, few_shards, "--test-part", "train", "--clips", 1, "--output", tmp_path / "a"
    )
    assert result.exit_code == 1
    assert "was trained on 12 of the 12 test videos" in result.output
    assert not (tmp_path / "a").exists()


def test_the_only_split_column_is_used_if_that_of_the_training_run_is_missing(
    tuned: Path, few_shards: Path, tmp_path: Path
) -> None:
    manifest, shards, out = tmp_path / "manifest.csv", tmp_path / "shards", tmp_path / "result.json"
    text = (few_shards.parent / "videos" / "manifest.csv").read_text()
    manifest.write_text(text.replace("split", "split7", 1))
    shutil.copytree(few_shards, shards)
    relabeled = call(extract_main, "relabel", shards, manifest)
    assert relabeled.exit_code == 0, relabeled.output
    result = call(eval_main, "recognition", tuned, shards, "--clips", 1, "--output", out)
    assert result.exit_code == 0, result.output
    assert "Split column: split7, the only one in the shards" in result.output
    assert json.loads(out.read_text())["splits"][0]["split_column"] == "split7"


def test_user_errors_are_reported(pretrained: Path, tuned: Path, few_shards: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((pretrained, few_shards), "has no classifier; run `cmd-train finetune"),
        ((tuned, few_shards, "--split-column", "split9"), "'split9'"),
        ((tuned, few_shards, "--test-part", "val"), "'val'"),
        ((tmp_path / "nothing", few_shards), "no checkpoint found"),
    ):
        result = call(eval_main, "recognition", *arguments)
        assert result.exit_code == 1
        assert message in result.output


@pytest.fixture(scope="module")
def awkward_shards(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with an unlabeled video, a class without training videos, and a file in both parts of a split."""
    folder = tmp_path_factory.mktemp("awkward")
    source = few_shards.parent / "videos"
    header, *rows = (source / "manifest.csv").read_text().splitlines()
    names = header.split(",")
    kept = [dict(zip(names, row.split(","), strict=True)) for row in rows][::2]
    for number, row in enumerate(kept):
        row["path"] = str(source / row["path"])
        row["split"] = "test" if number % 3 == 0 else "train"
        row["split2"] = row["split"]
    kept[0]["label"] = "strange"
    kept[1]["label"] = ""
    kept.append(kept[2] | {"id": "copy", "split": "", "split2": "test"})
    lines = [",".join([*names, "split2"]), *[",".join(row[name] for name in (*names, "split2")) for row in kept]]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    result = call(extract_main, "run", folder / "manifest.csv", folder / "shards", "--workers", 2)
    assert result.exit_code == 0, result.output
    return folder / "shards"


def test_unknown_classes_and_copies_are_reported(awkward_shards: Path, tmp_path: Path) -> None:
    trained = finetune(awkward_shards, tmp_path / "run", optim__batch_size=4, optim__epochs=1)
    assert trained.exit_code == 0, trained.output
    assert "Left out 1 videos without a label" in trained.output
    result = call(eval_main, "recognition", tmp_path / "run", awkward_shards, "--clips", 1)
    assert result.exit_code == 0, result.output
    assert "1 test videos belong to classes unknown to the classifier (strange)" in result.output
    copied = call(eval_main, "recognition", tmp_path / "run", awkward_shards, "--split-column", "split2")
    assert copied.exit_code == 1
    assert "copy" in copied.output
    assert "are the same file" in copied.output
    words = ("--split-column", "split2", "--clips", 1, "--skip-copies")
    skipped = call(eval_main, "recognition", tmp_path / "run", awkward_shards, *words)
    assert skipped.exit_code == 0, skipped.output
    assert "1 test videos were left out as copies of training videos" in skipped.output
    record = json.loads((tmp_path / "run" / "eval" / "recognition-split2-1-clips.json").read_text())
    assert record["splits"][0]["copies_left_out"] == 1


def test_retrieval_with_the_backbone_of_a_fine_tuned_checkpoint(tuned: Path, few_shards: Path, tmp_path: Path) -> None:
    words = ("--split-column", "split", "--clips", 1, "--output", tmp_path / "r.json")
    result = call(eval_main, "retrieval", tuned, few_shards, *words)
    assert result.exit_code == 0, result.output
