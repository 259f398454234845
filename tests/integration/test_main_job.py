from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cmd_eval.cli.main import main as eval_main
from cmd_eval.features.embed import load_backbone
from cmd_eval.features.source import cached_features_path
from cmd_train.checkpoints.files import list_checkpoints, load_checkpoint
from cmd_train.cli.main import main as train_main
from cmd_train.config import config_from_dict
from cmd_train.models.build import build_model
from tests.command_line import call
from tests.integration.cmd_train.training import FIELDS, same, weights

SMALL = ["--recipe", "demo", "--split-column", "split", "--batch-size", "4", "--workers", "0"]
SMALL += [word for field, value in FIELDS.items() for word in ("--set", f"{field}={value}")]


@pytest.fixture(scope="module")
def trained(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("job") / "run"
    result = call(train_main, "pretrain", few_shards, run_dir, *SMALL, "--epochs", 2)
    assert result.exit_code == 0, result.output
    return run_dir


def losses(run_dir: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def test_training_writes_metrics_and_a_checkpoint(trained: Path) -> None:
    steps = [step for step, _ in losses(trained)]
    assert steps == list(range(1, len(steps) + 1))
    checkpoint = load_checkpoint(trained)
    assert checkpoint.step == steps[-1]
    assert checkpoint.config["settings"]["data"]["split_column"] == "split"
    state = checkpoint.load_state()
    assert state["step"] == steps[-1]


def test_metrics_describe_the_spread_of_features(trained: Path) -> None:
    (*_, last) = (json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines())
    for head in ("context", "motion"):
        assert 0 <= last[f"{head}_alignment"] <= 4
        assert -8 <= last[f"{head}_query_uniformity"] <= 0
        assert -8 <= last[f"{head}_key_uniformity"] <= 0
        assert {f"{head}_top1", f"{head}_top5"} <= last.keys()
    assert "motion_static_share" not in last, "off by default"


def test_options_beyond_the_paper_train_and_resume_exactly(few_shards: Path, tmp_path: Path) -> None:
    options = {
        "augment.global_motion": "median",
        "augment.rescale_vectors": "true",
        "loss.drop_static_px": 0.25,
        "loss.motion_own_position": "true",
        "sampling.temporal_negatives": 0,
        "run.checkpoint_epochs": 2,
    }
    words = [word for field, value in options.items() for word in ("--set", f"{field}={value}")]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert call(train_main, "pretrain", few_shards, whole, *SMALL, *words, "--epochs", 4).exit_code == 0
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {line["context_candidates"] for line in lines} == {4}
    assert {line["motion_candidates"] for line in lines} == {4}, "no temporal negatives and no other positions"
    assert 0 < lines[-1]["motion_static_share"] < 1
    shutil.copytree(whole, stopped)
    shutil.rmtree(list_checkpoints(stopped)[-1])
    assert load_checkpoint(stopped).step == 6
    assert call(train_main, "pretrain", few_shards, stopped, *SMALL, *words, "--epochs", 4).exit_code == 0
    assert same(weights(whole), weights(stopped))
    assert losses(whole) == losses(stopped)


def test_only_the_train_part_is_used(trained: Path) -> None:
    # 12 of the 24 videos are in the part, in batches of 4: three steps per epoch; all videos would make six.
    assert load_checkpoint(trained).step == 6


def test_retrieval_prints_and_writes_a_table(trained: Path, few_shards: Path, tmp_path: Path) -> None:
    common = (
        few_shards,
        "--split-column",
        "split",
        "--clips",
        2,
        "--workers",
        0,
        "--target",
        "label",
        "--target",
        "group",
    )
    result = call(eval_main, "retrieval", trained, *common, "--output", tmp_path / "trained.json")
    assert result.exit_code == 0, result.output
    assert "R@50" in result.output
    assert "embed " in result.output  # the progress line
    record = json.loads((tmp_path / "trained.json").read_text())
    assert [r["target"] for r in record["splits"]] == ["label", "group"]
    assert (record["splits"][0]["queries"], record["splits"][0]["gallery"]) == (12, 12)
    assert not any("trained on" in note for note in record["notes"])
    assert set(record["splits"][0]["recall"]) == {"R@1", "R@5", "R@10", "R@20", "R@50"}
    source = record["provenance"]
    assert source["data_hash"] == source["trained_on"]
    assert source["checkpoint_sha256"] == load_checkpoint(trained).weights_hash
    assert source["settings"] == load_checkpoint(trained).config["settings"]
    assert (source["seed"], source["clips"]) == (0, 2)
    assert source["command"].startswith("cmd-eval retrieval ")
    kept = cached_features_path(trained, source["data_hash"], untrained=False, clips=2)
    assert kept.parent == trained / "eval"
    before = kept.stat().st_mtime_ns
    again = call(eval_main, "retrieval", trained, *common, "--output", tmp_path / "again.json")
    assert "embed" not in again.output
    assert kept.stat().st_mtime_ns == before
    by_file = call(eval_main, "retrieval", kept, *common[1:3], "--output", tmp_path / "file.json")
    assert by_file.exit_code == 0, by_file.output
    assert json.loads((tmp_path / "file.json").read_text())["splits"] == record["splits"][:1]
    untrained = call(eval_main, "retrieval", trained, *common, "--untrained", "--output", tmp_path / "untrained.json")
    assert untrained.exit_code == 0, untrained.output
    both = call(eval_main, "compare", tmp_path / "trained.json", tmp_path / "untrained.json")
    assert both.exit_code == 0, both.output
    assert "untrained" in both.output
    assert "last training batches" in both.output


def test_untrained_uses_the_weights_before_the_first_step(trained: Path) -> None:
    checkpoint = load_checkpoint(trained)
    config = config_from_dict(checkpoint.config["settings"])
    before = load_backbone(checkpoint, config, untrained=True).state_dict()
    assert same(before, build_model(config.model, seed=config.run.seed).backbone.state_dict())
    own = {name.removeprefix("backbone."): t for name, t in checkpoint.weights.items() if name.startswith("backbone.")}
    assert same(load_backbone(checkpoint, config).state_dict(), own)
    assert not same(before, own)


def test_queries_seen_in_training_are_reported(trained: Path, few_shards: Path, tmp_path: Path) -> None:
    common = (few_shards, "--split-column", "split", "--clips", 2, "--workers", 0, "--output", tmp_path / "r.json")
    result = call(eval_main, "retrieval", trained, *common, "--test-part", "train", "--train-part", "test")
    assert result.exit_code == 0, result.output
    assert "trained on 12 of the 12 queries" in result.output


def test_training_is_reproducible(trained: Path, few_shards: Path, tmp_path: Path) -> None:
    result = call(train_main, "pretrain", few_shards, tmp_path / "run", *SMALL, "--epochs", 2, "--workers", 2)
    assert result.exit_code == 0, result.output
    assert same(weights(trained), weights(tmp_path / "run"))
    assert losses(trained) == losses(tmp_path / "run")
    other = call(train_main, "pretrain", few_shards, tmp_path / "other", *SMALL, "--epochs", 2, "--seed", 1)
    assert other.exit_code == 0, other.output
    assert not same(weights(trained), weights(tmp_path / "other"))


def start(arguments: Sequence[object]) -> subprocess.Popen[str]:
    program = "from cmd_train.cli.main import main; main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment, start_new_session=True
    )


@pytest.mark.slow
def test_stopped_run_continues_bit_for_bit(few_shards: Path, tmp_path: Path) -> None:
    arguments = (
        "pretrain",
        few_shards,
        tmp_path / "stopped",
        *SMALL,
        "--epochs",
        10,
        "--workers",
        1,
        "--device",
        "cpu",
    )
    process = start(arguments)
    deadline = time.monotonic() + 120
    assert process.stderr is not None
    for line in process.stderr:
        assert time.monotonic() < deadline
        if line.startswith("step 3/"):
            break
    # Signal the whole process group including the data workers, as batch systems do. A second signal has no effect.
    os.killpg(process.pid, signal.SIGUSR1)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    stopped_at = load_checkpoint(tmp_path / "stopped").step
    assert 3 <= stopped_at < 30
    outcome = json.loads((tmp_path / "stopped" / "stopped").read_text())
    assert outcome["step"] == stopped_at
    assert outcome["reason"] in ("SIGUSR1", "SIGTERM")
    assert call(train_main, *arguments).exit_code == 0
    assert call(train_main, "pretrain", few_shards, tmp_path / "whole", *arguments[3:]).exit_code == 0
    assert [step for step, _ in losses(tmp_path / "stopped")] == list(range(1, 31))
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def test_run_stopped_by_time_limit_or_file_continues(trained: Path, few_shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = ("pretrain", few_shards, run_dir, *SMALL, "--epochs", 2)
    result = call(train_main, *arguments, "--max-hours", 1e-9)
    assert result.exit_code == 130, result.output
    assert "Stopped after step 1 (time limit reached)." in result.output
    assert json.loads((run_dir / "stopped").read_text()) == {"step": 1, "reason": "time limit reached"}
    assert load_checkpoint(run_dir).config == load_checkpoint(trained).config, "the time limit is not recorded"
    (run_dir / "stop").touch()
    result = call(train_main, *arguments, "--max-hours", 1000)
    assert result.exit_code == 130, result.output
    assert f"Stopped after step 2 (found {run_dir / 'stop'})." in result.output
    assert json.loads((run_dir / "stopped").read_text())["step"] == 2
    assert not (run_dir / "stop").exists()
    result = call(train_main, *arguments)
    assert result.exit_code == 0, result.output
    assert (run_dir / "finished").exists()
    assert not (run_dir / "stopped").exists()
    assert losses(run_dir) == losses(trained)
    assert same(weights(run_dir), weights(trained))


def test_run_starts_from_initial_weights(trained: Path, few_shards: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(trained, start)
    arguments = ("pretrain", few_shards, tmp_path / "run", *SMALL, "--epochs", 1)
    rates = ("--set", "optim.lr_per_sample=1e-30", "--set", "optim.warmup_lr_per_sample=0")
    result = call(train_main, *arguments, *rates, "--init", start)
    assert result.exit_code == 0, result.output
    parameters = {name for name, t in weights(trained).items() if t.is_floating_point() and "running" not in name}
    assert all(torch.equal(weights(trained)[name], weights(tmp_path / "run")[name]) for name in parameters)
    record = load_checkpoint(tmp_path / "run").config
    assert (record["recipe"], record["init"]["source"], record["init"]["part"]) == ("demo", str(start), "all")
    shutil.rmtree(start)
    for again in ((), ("--init", start)):
        result = call(train_main, *arguments, *rates, *again)
        assert result.exit_code == 0, result.output
    result = call(train_main, *arguments, *rates, "--init", trained)
    assert result.exit_code == 1
    assert f"started from {start}" in result.output
    result = call(train_main, "pretrain", few_shards, trained, *SMALL, "--epochs", 2, "--init", start)
    assert "started from scratch" in result.output


def test_video_selection_is_reported_recorded_and_continued(trained: Path, few_shards: Path, tmp_path: Path) -> None:
    words = [word for word in SMALL if word not in ("--split-column", "split")]
    # The only split column is the default, so a run that was started with --split-column continues without it.
    result = call(train_main, "pretrain", few_shards, trained, *words, "--epochs", 2)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == "Training on part 'train' of split column 'split': 12 of 24 videos"
    data = load_checkpoint(trained).config["settings"]["data"]
    assert (data["split_column"], data["train_part"], data["all_videos"]) == ("split", "train", False)
    result = call(train_main, "pretrain", few_shards, trained, *words, "--epochs", 2, "--all-videos")
    assert result.exit_code == 1
    assert "data.all_videos: False is now True" in result.output
    result = call(train_main, "pretrain", few_shards, tmp_path / "run", *words, "--epochs", 1, "--all-videos")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == "Training on all 24 videos (--all-videos)"
    data = load_checkpoint(tmp_path / "run").config["settings"]["data"]
    assert (data["split_column"], data["all_videos"]) == (None, True)


@pytest.mark.parametrize("option", [("--split-column", "split"), ("--train-part", "train")])
def test_all_videos_contradicts_a_split(option: tuple[str, str], few_shards: Path, tmp_path: Path) -> None:
    result = call(train_main, "pretrain", few_shards, tmp_path / "run", "--all-videos", *option)
    assert result.exit_code == 2
    assert f"--all-videos cannot be combined with {option[0]}." in result.output


def test_run_does_not_continue_with_different_settings(trained: Path, few_shards: Path) -> None:
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    result = call(train_main, "pretrain", few_shards, trained, *SMALL, "--epochs", 3)
    assert result.exit_code == 1
    assert "optim.epochs: 2 is now 3" in result.output
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--split-column", "split7"), "split7"),
        (("--train-part", "val"), "'val'"),
        (("--batch-size", "500"), "500"),
        (("--recipe", "imagenet"), "imagenet"),
        (("--set", "model.depth=3"), "model.depth"),
        (("--set", "model.context_head=false", "--set", "model.motion_head=false"), "at least one must be True"),
        (("--init", "/nowhere/weights.pth"), "/nowhere/weights.pth"),
    ],
)
def test_errors_name_invalid_input_before_the_first_step(
    few_shards: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    result = call(train_main, "pretrain", few_shards, tmp_path / "run", *SMALL, "--epochs", 1, *arguments)
    assert result.exit_code == 1
    assert words in result.output
    assert not list_checkpoints(tmp_path / "run")


def test_loss_that_is_not_finite_stops_the_run(few_shards: Path, tmp_path: Path) -> None:
    options = ("--epochs", 4, "--set", "optim.lr_per_sample=1e30", "--set", "optim.clip_norm=0")
    result = call(train_main, "pretrain", few_shards, tmp_path / "run", *SMALL, *options)
    assert result.exit_code == 1
    assert "the loss is nan" in result.output
    assert "left-" in result.output, "the videos of the step are listed"
    # The weights from before the failed step are saved with the samples of its batch.
    failed = load_checkpoint(tmp_path / "run" / "failed")
    assert f"step {failed.step + 1}: the loss is nan" in result.output
    parameters = {name: value for name, value in failed.weights.items() if "running" not in name}
    assert all(torch.isfinite(value).all() for value in parameters.values())
    state = failed.load_state()
    assert state["samples"].count("left-") + state["samples"].count("up-") == 4
    assert "(0, " in state["samples"]
    assert not list_checkpoints(tmp_path / "run"), "a run does not continue from there"
