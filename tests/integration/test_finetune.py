"""Fine-tuning, its test and the auxiliary comparison through the real command line, on synthesized videos."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from eval.cli import main as eval_main
from extract.cli import main as extract_main
from tests.integration.training import finish, launch, metrics, options, same, until_line, weights
from train.checkpoint import list_checkpoints, load_checkpoint
from train.cli import main as train_main


def call(command: object, *arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(a) for a in arguments])  # type: ignore[arg-type]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def settings(**changes: object) -> list[str]:
    """As of the other trainings; of their fields those that are not the recipe's."""
    words = options(**changes)
    words[words.index("demo")] = "finetune-demo"
    return [*words, "--split-column", "split"]


def finetune(shards: Path, run_dir: Path, *words: object, start: object = "scratch", **changes: object) -> Result:
    given = {"optim__epochs": 2} | changes
    return call(train_main, "finetune", shards, run_dir, "--from", start, *settings(**given), *words)


def config_of(run_dir: Path) -> dict[str, Any]:
    return load_checkpoint(run_dir).config


@pytest.fixture(scope="module")
def pretrained(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("pretrained") / "run"
    words = [*options(optim__epochs=1, sampling__stride=1), "--split-column", "split"]
    result = call(train_main, "pretrain", few_shards, run_dir, *words)
    assert result.exit_code == 0, result.output
    return run_dir


@pytest.fixture(scope="module")
def tuned(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("tuned") / "run"
    result = finetune(few_shards, run_dir)
    assert result.exit_code == 0, result.output
    return run_dir


def test_a_classifier_is_trained_from_scratch(tuned: Path) -> None:
    lines = metrics(tuned)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert all(line["loss"] == line["classification_loss"] for line in lines)
    assert lines[-1]["classification_candidates"] == 2
    assert not [name for name in lines[-1] if name.startswith(("motion", "context"))]
    stored = config_of(tuned)
    assert stored["classes"] == ["left", "up"]
    assert (stored["init"], stored["recipe"]) == (None, "finetune-demo")
    assert weights(tuned)["classifier.weight"].shape[0] == 2


@pytest.mark.parametrize("auxiliary", ["none", "motion"])
def test_it_starts_from_a_pretrained_checkpoint(
    auxiliary: str, pretrained: Path, few_shards: Path, tmp_path: Path
) -> None:
    still = {"optim__lr_per_sample": 1e-30, "optim__warmup_lr_per_sample": 0, "optim__epochs": 1}
    words = ("--auxiliary", auxiliary)
    source = tmp_path / "source"
    shutil.copytree(pretrained, source)
    result = finetune(few_shards, tmp_path / "run", *words, start=source, **still)
    assert result.exit_code == 0, result.output
    told = "backbone and motion head" if auxiliary == "motion" else "backbone"
    assert f"took the {told} of {source}" in result.output
    assert "sampling.stride 1 there, 2 here" in result.output
    theirs, ours = weights(pretrained), weights(tmp_path / "run")
    taken = [name for name in ours if not name.startswith("classifier.") and name in theirs]
    assert any(name.startswith("motion.") for name in taken) == (auxiliary == "motion")
    assert all(torch.equal(theirs[name], ours[name]) for name in taken if "running" not in name and "num_" not in name)
    assert ("motion_loss" in metrics(tmp_path / "run")[-1]) == (auxiliary == "motion")
    # To continue, the source is not needed, but it must be the same one.
    shutil.rmtree(source)
    assert finetune(few_shards, tmp_path / "run", *words, start=source, **still).exit_code == 0
    other = finetune(few_shards, tmp_path / "run", *words, **still)
    assert other.exit_code == 1
    assert f"began from {source}" in other.output
    record = config_of(tmp_path / "run")["init"]
    assert record["trained_on"]["split_column"] == "split"


def assert_same_run(first: Path, second: Path) -> None:
    assert metrics(first) == metrics(second)
    assert same(weights(first), weights(second))
    states = [load_checkpoint(run_dir).load_state()["optimizer"]["state"] for run_dir in (first, second)]
    assert states[0].keys() == states[1].keys()
    assert all(same(states[0][key], states[1][key]) for key in states[0])


def test_a_stopped_fine_tuning_continues_bit_for_bit(few_shards: Path, tmp_path: Path) -> None:
    words = ["--from", "scratch", "--auxiliary", "motion", *settings(optim__epochs=30, data__workers=1)]
    process = launch(1, [few_shards, tmp_path / "stopped", *words], "finetune")
    until_line(process, "step 4/")
    os.killpg(process.pid, signal.SIGTERM)
    finish(process, timeout=60)
    assert process.returncode == 130
    stopped_at = load_checkpoint(tmp_path / "stopped").step
    assert 4 <= stopped_at < 30
    continued = call(train_main, "finetune", few_shards, tmp_path / "stopped", *words)
    assert f"continuing after step {stopped_at}" in continued.output
    whole = call(train_main, "finetune", few_shards, tmp_path / "whole", *words)
    assert (continued.exit_code, whole.exit_code) == (0, 0), whole.output
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_classifier_alone_continues_bit_for_bit(few_shards: Path, tmp_path: Path) -> None:
    changes = {"optim__epochs": 6, "run__checkpoint_epochs": 1, "run__keep_checkpoints": 9, "data__workers": 1}
    whole = finetune(few_shards, tmp_path / "whole", **changes)
    assert whole.exit_code == 0, whole.output
    shutil.copytree(tmp_path / "whole", tmp_path / "part", symlinks=True)
    for path in list_checkpoints(tmp_path / "part")[2:]:
        shutil.rmtree(path)
    continued = finetune(few_shards, tmp_path / "part", **changes)
    assert "continuing after step 2 of 6" in continued.output
    assert_same_run(tmp_path / "part", tmp_path / "whole")


def test_two_ranks_train_one_classifier(few_shards: Path, tmp_path: Path) -> None:
    words = ["--from", "scratch", "--auxiliary", "motion", *settings(optim__epochs=1)]
    process = launch(2, [few_shards, tmp_path / "run", *words], "finetune")
    said = finish(process)
    assert process.returncode == 0, said
    assert metrics(tmp_path / "run")


def test_pretraining_and_fine_tuning_do_not_continue_each_other(
    pretrained: Path, tuned: Path, few_shards: Path
) -> None:
    result = finetune(few_shards, pretrained, start=pretrained)
    assert result.exit_code == 1
    result_of_other = call(train_main, "pretrain", few_shards, tuned, *options(), "--split-column", "split")
    assert result_of_other.exit_code == 1
    assert "holds a fine-tuning" in result_of_other.output


@pytest.mark.parametrize(
    ("words", "start", "told"),
    [
        ((), "/nowhere/weights.pth", "/nowhere/weights.pth"),
        (("--set", "model.width=12"), None, "model.width 8 there, 12 here"),
        (("--recipe", "ucf101"), "scratch", "'ucf101' is not for cmd-train finetune"),
        (("--set", "augment.rotation_degrees=5", "--auxiliary", "motion"), "scratch", "rotation_degrees: 5"),
        (("--set", "model.context_head=true"), "scratch", "model.context_head"),
        (("--set", "model.motion_head=true", "--set", "sampling.motion_room=true"), "scratch", "--auxiliary none"),
        (("--part", "val"), "scratch", "'val'"),
        (("--set", "optim.batch_size=500"), "scratch", "500"),
    ],
)
def test_bad_input_is_named_before_the_first_step(
    words: tuple[str, ...], start: str | None, told: str, few_shards: Path, pretrained: Path, tmp_path: Path
) -> None:
    result = finetune(few_shards, tmp_path / "run", *words, start=start or pretrained)
    assert result.exit_code == 1
    assert told in result.output
    assert result.output.count("Error:") == 1
    assert not list_checkpoints(tmp_path / "run")


def test_where_it_starts_must_be_said(few_shards: Path, tmp_path: Path) -> None:
    result = call(train_main, "finetune", few_shards, tmp_path / "run")
    assert result.exit_code == 2
    assert "Missing option '--from'" in result.output
    printed = call(train_main, "finetune", "--recipe", "finetune-hmdb51", "--auxiliary", "motion", "--print-config")
    assert json.loads(printed.output)["model"]["motion_head"] is True


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
    assert "top-5 says nothing" in result.output
    assert "6 groups are in both" in result.output
    assert "trained on" not in result.output

    assert split["chance"] == pytest.approx(0.5), "as many of either class"
    page = call(eval_main, "report", tuned)
    assert page.exit_code == 0, page.output
    assert "not a whole result" not in page.output
    text = (tuned / "report.html").read_text()
    assert '<section id="recognition">' in text
    assert "trained network, step 2, 3 clips a video" in text
    assert f"{100 * split['top1']['value']:.1f}" in text

    several = call(eval_main, "recognition", tuned, tuned, few_shards, "--clips", 1, "--output", tmp_path / "all.json")
    assert several.exit_code == 0, several.output
    both = json.loads((tmp_path / "all.json").read_text())
    assert len(both["splits"]) == 2
    assert both["mean"][0]["top1"]["spread"] == 0
    assert "over 2 results" in several.output
    assert both["splits"][0]["provenance"]["checkpoint_sha256"] == checkpoint.weights_hash


def test_recognition_refuses_videos_that_were_trained_on(tuned: Path, few_shards: Path, tmp_path: Path) -> None:
    result = call(
        eval_main, "recognition", tuned, few_shards, "--part", "train", "--clips", 1, "--output", tmp_path / "a"
    )
    assert result.exit_code == 1
    assert "was trained on 12 of the 12 test videos" in result.output
    assert not (tmp_path / "a").exists()


def test_recognition_refuses_what_it_cannot_test(
    pretrained: Path, tuned: Path, few_shards: Path, tmp_path: Path
) -> None:
    for arguments, told in (
        ((pretrained, few_shards), "has no classifier; run `cmd-train finetune"),
        ((tuned, few_shards, "--split-column", "split9"), "'split9'"),
        ((tuned, few_shards, "--part", "val"), "'val'"),
        ((tmp_path / "nothing", few_shards), "no checkpoint there"),
    ):
        result = call(eval_main, "recognition", *arguments)
        assert result.exit_code == 1
        assert told in result.output


@pytest.fixture(scope="module")
def awkward_shards(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos without a label, of a class that is tested only, and a file that is in both parts of one split."""
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


def test_awkward_labels_and_copies_are_told(awkward_shards: Path, tmp_path: Path) -> None:
    trained = finetune(awkward_shards, tmp_path / "run", optim__batch_size=4, optim__epochs=1)
    assert trained.exit_code == 0, trained.output
    assert "1 videos have no label and were left out" in trained.output
    result = call(eval_main, "recognition", tmp_path / "run", awkward_shards, "--clips", 1)
    assert result.exit_code == 0, result.output
    assert "1 test videos are of classes that the classifier does not know (strange)" in result.output
    copied = call(eval_main, "recognition", tmp_path / "run", awkward_shards, "--split-column", "split2")
    assert copied.exit_code == 1
    assert "copy" in copied.output
    assert "are the same file" in copied.output


def test_one_class_is_refused(few_shards: Path, tmp_path: Path) -> None:
    manifest = few_shards.parent / "videos" / "manifest.csv"
    header, *rows = manifest.read_text().splitlines()
    alone = manifest.with_name("one.csv")
    alone.write_text("\n".join([header, *[row for row in rows if row.startswith("left-")][:3]]) + "\n")
    assert call(extract_main, "run", alone, tmp_path / "shards", "--workers", 2).exit_code == 0
    words = ["--from", "scratch", *options()]
    words[words.index("demo")] = "finetune-demo"
    result = call(train_main, "finetune", tmp_path / "shards", tmp_path / "run", *words)
    assert result.exit_code == 1
    assert "all 3 that have one are 'left'; need at least 2 classes" in result.output


def test_retrieval_takes_the_backbone_of_a_fine_tuned_checkpoint(tuned: Path, few_shards: Path, tmp_path: Path) -> None:
    words = ("--split-column", "split", "--clips", 1, "--output", tmp_path / "r.json")
    result = call(eval_main, "retrieval", tuned, few_shards, *words)
    assert result.exit_code == 0, result.output


def test_the_auxiliary_task_is_compared(few_shards: Path, tmp_path: Path) -> None:
    words = [word for word in settings(optim__epochs=1) if word not in ("--split-column", "split")]
    arguments = [few_shards, tmp_path / "out", *words, "--split-column", "split", "--clips", 1]
    result = call(eval_main, "auxiliary", *arguments, "--seeds", 1)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "eval" / "auxiliary.json").read_text())
    assert (record["kind"], record["pairs"]) == ("auxiliary", 1)
    top1 = {run["auxiliary"]: run["top1"]["value"] for run in record["runs"]}
    assert record["difference"]["value"] == pytest.approx(top1["motion"] - top1["none"])
    assert record["difference"]["low"] <= record["difference"]["value"] <= record["difference"]["high"]
    assert f"by {100 * record['difference']['value']:+.1f} points" in result.output
    assert "the interval covers the choice of test videos only" in result.output
    plain, motion = (config_of(Path(run["run_dir"]))["settings"] for run in record["runs"])
    assert plain["model"].pop("motion_head") is False
    assert motion["model"].pop("motion_head") is True
    assert plain == motion

    # Another seed adds two runs; those that are done stay as they are.
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    again = call(eval_main, "auxiliary", *arguments, "--seeds", 2)
    assert again.exit_code == 0, again.output
    assert again.output.count("(done before)") == 2
    assert {path: path.stat().st_mtime_ns for path in done} == done
    more = json.loads((tmp_path / "out" / "eval" / "auxiliary.json").read_text())
    assert (more["pairs"], len(more["runs"])) == (2, 4)

    assert "warning: split: 6 groups are in both parts" in again.output
    assert any("6 groups are in both parts" in note for note in more["notes"])
    page = call(eval_main, "report", tmp_path / "out")
    assert page.exit_code == 0, page.output
    assert "not a whole result" not in page.output
    text = (tmp_path / "out" / "report.html").read_text()
    assert f"{100 * more['difference']['value']:+.1f} points" in text
    assert "over 2 pairs of runs" in text

    changed = call(eval_main, "auxiliary", *arguments, "--seeds", 1, "--set", "optim.epochs=2")
    assert changed.exit_code == 1
    assert "cmd-train ended with exit code 1" in changed.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--recipe", "ucf101"), "'ucf101' is not for cmd-train finetune"),
        (("--recipe", "finetune-demo", "--set", "optim.speed=3"), "optim.speed"),
        (("--recipe", "finetune-demo", "--split-column", "split9"), "'split9'"),
        (("--recipe", "finetune-demo", "--set", "run.seed=5"), "run.seed: decided by the comparison itself"),
        (("--recipe", "finetune-demo", "--part", "train"), "trained on 12 of the 12 test videos"),
    ],
)
def test_bad_input_is_told_before_any_run(words: tuple[str, ...], told: str, few_shards: Path, tmp_path: Path) -> None:
    result = call(eval_main, "auxiliary", few_shards, tmp_path / "out", "--split-column", "split", *words)
    assert result.exit_code == 1
    assert told in result.output
    assert not (tmp_path / "out").exists()
