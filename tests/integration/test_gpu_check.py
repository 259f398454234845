"""The check for machines with a GPU (tests/gpu/check.py) runs on a CPU, on little data."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cmd_eval.cli.experiments import evidence
from cmd_extract.shard.reader import ShardSet
from tests.benchmarks import gpu_training
from tests.benchmarks.loader_workers import batch_stream
from tests.gpu.check import GRADIENT_TOLERANCE, evidence_arguments
from tests.paths import ROOT


@pytest.mark.slow
def test_losses_and_gradients_agree(few_shards: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu.check", few_shards, "--device", "cpu", "--tiny", "--no-measurement"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(.+?)[:,] .*gradients differ by (\S+)$", done.stdout, re.M)
    assert [name for name, _ in found] == ["directions", "features", "gloo"]
    assert all(float(error) < GRADIENT_TOLERANCE for _, error in found)


def test_training_speed_is_measured(few_shards: Path) -> None:
    given = argparse.Namespace(device="cpu", backbone="r2plus1d_10", channels_last=True, tiny=True)
    plan, shards = gpu_training.planned(given), ShardSet(few_shards)
    config = gpu_training.configured(plan, "float32", False)
    batch = next(batch_stream(shards, config.sampling, 0, batch=plan.batch))
    tflop = gpu_training.tflop_of_a_step(config, shards, batch, torch.device("cpu"))
    assert tflop > 0
    for form in ("float32", "bf16"):
        name, speed, *_ = gpu_training.measure(form, shards, batch, tflop, plan).strip("| ").split(" | ")
        assert name == form
        assert float(speed.split()[0]) > 0


@pytest.mark.parametrize("tiny", [False, True])
def test_the_evidence_has_these_options(few_shards: Path, tmp_path: Path, tiny: bool) -> None:
    words = [few_shards, tmp_path, *evidence_arguments("cpu", tiny=tiny)]
    context = evidence.make_context("evidence", list(map(str, words)))
    assert context.params["device"] == "cpu"
