"""Embedding of files and arrays from Python, with any kind of trained weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cmd_eval
import cmd_extract
import cmd_train
from cmd_eval.cli.main import main
from cmd_extract.config import ExtractConfig
from tests.command_line import call

QUICK = ("--workers", 0, "--device", "cpu")


@pytest.fixture(scope="module")
def model(pretrained: Path) -> cmd_eval.VideoModel:
    return cmd_eval.load_model(pretrained)


@pytest.fixture(scope="module")
def files(few_shards: Path) -> list[Path]:
    folder = few_shards.parent / "videos"
    return [folder / record.path for record in cmd_extract.read_manifest(folder / "manifest.csv")]


@pytest.mark.parametrize("readout", ["mean", "grid-ordered"])
def test_features_of_files_are_those_of_shards(
    pretrained: Path, few_shards: Path, files: list[Path], tmp_path: Path, readout: str
) -> None:
    stored = tmp_path / "features.h5"
    model = cmd_eval.load_model(str(pretrained))
    result = call(main, "embed", pretrained, few_shards, stored, "--clips", 3, "--readout", readout, *QUICK)
    assert result.exit_code == 0, result.output
    expected = cmd_eval.read_features(stored).table_VF
    seen: list[tuple[int, int]] = []
    features = model.embed(
        files[:5], clips=3, readout=readout, device="cpu", progress=lambda *counts: seen.append(counts)
    )
    assert features.dtype == np.float32
    assert np.abs(features - expected[:5]).max() <= 1e-4
    assert np.abs(features[0] - expected[6]).max() > 1e-3, "features of other videos differ more"
    assert seen == [(number, 5) for number in range(1, 6)]


def test_features_of_frames_in_memory(model: cmd_eval.VideoModel, few_shards: Path, files: list[Path]) -> None:
    frames = cmd_extract.open_shards(few_shards).clip(2)
    expected = model.embed(files[2], clips=3, contained=False, device="cpu")[0]
    assert np.abs(model.embed_array(frames, fps=30, clips=3, device="cpu") - expected).max() <= 1e-4
    # Larger frames are resized.
    large = frames.repeat(3, axis=1).repeat(3, axis=2)
    near = model.embed_array(large, clips=3, device="cpu")
    cosine = near @ expected / np.linalg.norm(near) / np.linalg.norm(expected)
    assert cosine > 0.999
    with pytest.raises(
        ValueError, match=r"frames_THWC_u8: must be \(T, H, W, 3\) uint8, got \(24, 128, 170, 3\) float32"
    ):
        model.embed_array(frames.astype(np.float32))  # type: ignore[arg-type] # the case under test


def test_frames_are_resampled_to_the_frame_rate_of_training(model: cmd_eval.VideoModel, pretrained: Path) -> None:
    slow = cmd_eval.load_model(pretrained)
    slow.extraction = ExtractConfig(fps="15")
    frames = np.random.default_rng(0).integers(0, 256, (60, 128, 170, 3), np.uint8)
    assert np.array_equal(slow.embed_array(frames, 30, device="cpu"), model.embed_array(frames[::2], device="cpu"))
    with pytest.raises(ValueError, match="fps: required, since the network was trained on videos converted to 15"):
        slow.embed_array(frames)


def test_failures_name_the_video_or_leave_its_row_empty(
    model: cmd_eval.VideoModel, files: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(cmd_extract.VideoError, match=r"broken\.mp4: probe: "):
        model.embed([files[0], broken], clips=1, device="cpu")
    errors: list[cmd_extract.VideoError] = []
    features = model.embed([broken, files[0]], clips=1, device="cpu", on_error=errors.append)
    assert np.isnan(features[0]).all()
    assert np.isfinite(features[1]).all()
    assert [error.path for error in errors] == [str(broken)]
    assert model.embed([], device="cpu").shape == (0, features.shape[1])
    with pytest.raises(ValueError, match="trained to predict directions"):
        model.embed(files[:1], readout="directions")
    for words, change in (("clips", {"clips": 0}), ("readout", {"readout": "sum"}), ("device", {"device": "tpu"})):
        with pytest.raises(ValueError, match=f"{words}: must be "):
            model.embed(files[:1], **change)


def test_backbones_of_runs_and_files_are_modules(
    pretrained: Path, model: cmd_eval.VideoModel, few_shards: Path
) -> None:
    dataset = cmd_train.ShardDataset(few_shards, clip_frames=8, stride=1, clips=3)
    clips_BCTHW = cmd_train.center_crop(dataset[0]["clip"], 32)
    checkpoint = cmd_train.load_checkpoint(pretrained)
    for path in (pretrained, checkpoint.path, checkpoint.weights_file):
        backbone = cmd_train.load_backbone(path)
        assert not backbone.training
        with torch.inference_mode():
            output = backbone(clips_BCTHW)
        assert output.pooled_BC.shape == (3, backbone.feature_channels)
        assert output.tokens_BCTHW.shape == (3, backbone.token_channels, 1, 2, 2)
    expected = model.embed_array(cmd_extract.open_shards(few_shards).clip(0), clips=3, device="cpu")
    assert np.abs(output.pooled_BC.mean(0).numpy() - expected).max() <= 1e-4
    with pytest.raises(ValueError, match="no checkpoint found"):
        cmd_train.load_backbone(few_shards)


def test_checkpoints_record_how_their_videos_were_extracted(model: cmd_eval.VideoModel, few_shards: Path) -> None:
    assert model.extraction == ExtractConfig.from_description(cmd_extract.open_shards(few_shards).header.config)


def test_nothing_is_printed_without_progress(pretrained: Path, files: list[Path], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, cmd_eval\n"
        f"model = cmd_eval.load_model({str(pretrained)!r})\n"
        f"features = model.embed([{str(files[0])!r}], clips=1, progress=len(sys.argv) > 1)\n"
        "assert features.shape == (1, 64)\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    silent, shown = (
        subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=True, env=environment)
        for words in ((), ("progress",))
    )
    assert (silent.stdout, silent.stderr) == ("", "")
    assert "embed 1/1 videos" in shown.stderr
