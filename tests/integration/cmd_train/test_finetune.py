"""Fine-tuning by the command line, on synthetic videos."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from cmd_extract.cli.main import main as extract_main
from cmd_train.checkpoints.files import list_checkpoints, load_checkpoint
from cmd_train.cli.main import main as train_main
from tests.command_line import call
from tests.integration.cmd_train.finetuning import config_of, finetune, settings
from tests.integration.cmd_train.training import finish, launch, metrics, options, same, until_line, weights


def test_classifier_is_trained_from_scratch(tuned: Path) -> None:
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
def test_classifier_starts_from_a_pretrained_checkpoint(
    auxiliary: str, pretrained: Path, few_shards: Path, tmp_path: Path
) -> None:
    still = {"optim__lr_per_sample": 1e-30, "optim__warmup_lr_per_sample": 0, "optim__epochs": 1}
    words = ("--auxiliary", auxiliary)
    source = tmp_path / "source"
    shutil.copytree(pretrained, source)
    result = finetune(few_shards, tmp_path / "run", *words, start=source, **still)
    assert result.exit_code == 0, result.output
    part = "backbone and motion head" if auxiliary == "motion" else "backbone"
    assert f"Loaded the {part} from {source}" in result.output
    assert "sampling.stride 1 in the source, 2 in this run" in result.output
    theirs, ours = weights(pretrained), weights(tmp_path / "run")
    taken = [name for name in ours if not name.startswith("classifier.") and name in theirs]
    assert any(name.startswith("motion.") for name in taken) == (auxiliary == "motion")
    assert all(torch.equal(theirs[name], ours[name]) for name in taken if "running" not in name and "num_" not in name)
    assert ("motion_loss" in metrics(tmp_path / "run")[-1]) == (auxiliary == "motion")
    # Continuing does not need the source, but the same option.
    shutil.rmtree(source)
    assert finetune(few_shards, tmp_path / "run", *words, start=source, **still).exit_code == 0
    other = finetune(few_shards, tmp_path / "run", *words, **still)
    assert other.exit_code == 1
    assert f"started from {source}" in other.output
    record = config_of(tmp_path / "run")["init"]
    assert record["trained_on"]["split_column"] == "split"


def assert_same_run(first: Path, second: Path) -> None:
    assert metrics(first) == metrics(second)
    assert same(weights(first), weights(second))
    states = [load_checkpoint(run_dir).load_state()["optimizer"]["state"] for run_dir in (first, second)]
    assert states[0].keys() == states[1].keys()
    assert all(same(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.slow
def test_stopped_fine_tuning_continues_bit_for_bit(few_shards: Path, tmp_path: Path) -> None:
    words = ["--from", "scratch", "--auxiliary", "motion", *settings(optim__epochs=30, data__workers=1)]
    process = launch(1, [few_shards, tmp_path / "stopped", *words], "finetune")
    until_line(process, "step 4/")
    os.killpg(process.pid, signal.SIGTERM)
    finish(process, timeout=60)
    assert process.returncode == 130
    stopped_at = load_checkpoint(tmp_path / "stopped").step
    assert 4 <= stopped_at < 30
    continued = call(train_main, "finetune", few_shards, tmp_path / "stopped", *words)
    assert f"Continuing after step {stopped_at}" in continued.output
    whole = call(train_main, "finetune", few_shards, tmp_path / "whole", *words)
    assert (continued.exit_code, whole.exit_code) == (0, 0), whole.output
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_fine_tuning_without_motion_continues_bit_for_bit(few_shards: Path, tmp_path: Path) -> None:
    changes = {"optim__epochs": 6, "run__checkpoint_epochs": 1, "run__keep_checkpoints": 9, "data__workers": 1}
    whole = finetune(few_shards, tmp_path / "whole", **changes)
    assert whole.exit_code == 0, whole.output
    shutil.copytree(tmp_path / "whole", tmp_path / "part", symlinks=True)
    for path in list_checkpoints(tmp_path / "part")[2:]:
        shutil.rmtree(path)
    continued = finetune(few_shards, tmp_path / "part", **changes)
    assert "Continuing after step 2 of 6" in continued.output
    assert_same_run(tmp_path / "part", tmp_path / "whole")


@pytest.mark.slow
def test_two_ranks_train_one_classifier(few_shards: Path, tmp_path: Path) -> None:
    words = ["--from", "scratch", "--auxiliary", "motion", *settings(optim__epochs=1)]
    process = launch(2, [few_shards, tmp_path / "run", *words], "finetune")
    output = finish(process)
    assert process.returncode == 0, output
    assert metrics(tmp_path / "run")


def test_pretraining_and_fine_tuning_do_not_continue_each_other(
    pretrained: Path, tuned: Path, few_shards: Path
) -> None:
    result = finetune(few_shards, pretrained, start=pretrained)
    assert result.exit_code == 1
    result_of_other = call(train_main, "pretrain", few_shards, tuned, *options(all_videos=False))
    assert result_of_other.exit_code == 1
    assert "contains a fine-tuning run" in result_of_other.output


@pytest.mark.parametrize(
    ("words", "start", "message"),
    [
        ((), "/nowhere/weights.pth", "/nowhere/weights.pth"),
        (("--set", "model.width=12"), None, "model.width 8 in the source, 12 in this run"),
        (("--recipe", "ucf101"), "scratch", "'ucf101' is not for cmd-train finetune"),
        (
            ("--set", "augment.rotation_degrees=5", "--auxiliary", "motion"),
            "scratch",
            "must be 0 with --auxiliary motion",
        ),
        (("--set", "model.context_head=true"), "scratch", "model.context_head"),
        (("--set", "model.motion_head=true", "--set", "sampling.motion_room=true"), "scratch", "--auxiliary none"),
        (("--train-part", "val"), "scratch", "'val'"),
        (("--set", "optim.batch_size=500"), "scratch", "500"),
    ],
)
def test_errors_name_invalid_input_before_the_first_step(
    words: tuple[str, ...], start: str | None, message: str, few_shards: Path, pretrained: Path, tmp_path: Path
) -> None:
    result = finetune(few_shards, tmp_path / "run", *words, start=start or pretrained)
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.count("Error:") == 1
    assert not list_checkpoints(tmp_path / "run")


def test_from_is_required(few_shards: Path, tmp_path: Path) -> None:
    result = call(train_main, "finetune", few_shards, tmp_path / "run")
    assert result.exit_code == 2
    assert "Missing option '--from'" in result.output
    printed = call(train_main, "finetune", "--recipe", "finetune-hmdb51", "--auxiliary", "motion", "--print-config")
    assert json.loads(printed.output)["model"]["motion_head"] is True


def test_single_class_is_rejected(few_shards: Path, tmp_path: Path) -> None:
    manifest = few_shards.parent / "videos" / "manifest.csv"
    header, *rows = manifest.read_text().splitlines()
    alone = manifest.with_name("one.csv")
    alone.write_text("\n".join([header, *[row for row in rows if row.startswith("left-")][:3]]) + "\n")
    assert call(extract_main, "run", alone, tmp_path / "shards", "--workers", 2).exit_code == 0
    words = ["--from", "scratch", *options()]
    words[words.index("demo")] = "finetune-demo"
    result = call(train_main, "finetune", tmp_path / "shards", tmp_path / "run", *words)
    assert result.exit_code == 1
    assert "have the label 'left' only (3 videos); fine-tuning needs at least 2 classes" in result.output
