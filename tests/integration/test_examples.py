"""The examples run as their pages say, on small data."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.paths import ROOT
from tests.unit.cmd_train.models.test_parity import published_state

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "plot_motion.py",
        "search_videos.py",
        "train_classifier.py",
    }
    assert len((EXAMPLES / "train_classifier.py").read_text().splitlines()) < 40


def test_a_classifier_is_trained(few_shards: Path, pretrained: Path) -> None:
    words = ("--backbone", pretrained, "--epochs", 1, "--crop", 32)
    lines = run("train_classifier.py", few_shards, *words).stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 1", "top-1 on 12 test videos"]


def test_a_folder_is_searched(few_shards: Path, pretrained: Path, tmp_path: Path) -> None:
    videos = sorted((few_shards.parent / "videos").rglob("*.mp4"))[:4]
    (tmp_path / "deep").mkdir()
    for video in videos:
        (tmp_path / "deep" / video.name).symlink_to(video)
    (tmp_path / "broken.MP4").write_bytes(b"no video")
    done = run("search_videos.py", pretrained, tmp_path, videos[2], "--count", 3, "--clips", 2)
    broken, *hits = done.stdout.splitlines()
    assert broken.startswith(f"{tmp_path / 'broken.MP4'}: probe: ")
    assert len(hits) == 3
    assert hits[0].split() == ["1.000", str(tmp_path / "deep" / videos[2].name)]
    assert "embed 6/6 videos" in done.stderr


def test_published_weights_search_ones_own_videos(few_shards: Path, tmp_path: Path) -> None:
    # The three commands of train/README.md after the download, which a file of the same names and shapes replaces.
    (tmp_path / "weights").mkdir()
    torch.save(published_state("resnet26_2p1d"), tmp_path / "weights" / "pytorch_model.pt")
    page = (ROOT / "train" / "README.md").read_text()
    (command,) = re.findall(
        r"^python examples/(search_videos.py) (weights/pytorch_model.pt) VIDEOS query.mp4$", page, re.M
    )
    (tmp_path / "videos").mkdir()
    video, other = sorted((few_shards.parent / "videos").rglob("*.mp4"))[:2]
    for path in (video, other):
        (tmp_path / "videos" / path.name).symlink_to(path)
    script, weights = command
    hits = run(script, tmp_path / weights, tmp_path / "videos", video, "--clips", 1).stdout.splitlines()
    assert hits[0].split() == ["1.000", str(tmp_path / "videos" / video.name)]
    assert len(hits) == 2


def test_motion_is_plotted(few_shards: Path, tmp_path: Path) -> None:
    video = next((few_shards.parent / "videos").rglob("*.mp4"))
    out = tmp_path / "motion.png"
    assert run("plot_motion.py", video, out).stdout == f"24 frames, {out} written\n"
    with Image.open(out) as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 100
