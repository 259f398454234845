from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image

from cmd_extract.cli.main import main as extract_main
from cmd_extract.decode.source import estimate_frame_count, open_input
from cmd_train.cli.main import main as train_main
from tests.command_line import outcome
from tests.integration.cmd_train.training import options


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and modification time of every path below a folder."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


@pytest.fixture
def job(few_shards: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A manifest and a copy of its extraction."""
    shutil.copytree(few_shards, tmp_path / "shards")
    return few_shards.parent / "videos" / "manifest.csv", tmp_path / "shards"


def test_dry_run_of_extraction_into_a_new_folder(job: tuple[Path, Path], tmp_path: Path) -> None:
    before = tree(tmp_path)
    code, output = outcome(extract_main, "run", job[0], tmp_path / "new" / "out", "--videos-per-shard", 7, "--dry-run")
    assert code == 0
    assert "24 videos in 4 shards" in output
    assert "0 shards, 0 videos\nto do     4 shards, 24 videos" in output
    # The headers are accurate: 24 videos of 24 frames each.
    assert "frames    about 576, from the headers of 24 files" in output
    assert tree(tmp_path) == before


def test_dry_run_of_a_partial_extraction(job: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, shards = job
    (shards / "shard-00001.h5").unlink()
    (shards / "index.json").unlink()
    before = tree(tmp_path)
    code, output = outcome(extract_main, "run", manifest, shards, "--videos-per-shard", 7, "--dry-run")
    assert code == 0
    assert "finished  3 shards, 17 videos\nto do     1 shards, 7 videos" in output
    remaining = sum(path.stat().st_size for path in shards.glob("shard-*.h5")) / 17 * 7
    assert f"disk      about {remaining / 1e6:.1f} MB more, from the size of the finished shards" in output
    assert tree(tmp_path) == before


def test_dry_run_of_one_task_lists_missing_files(job: tuple[Path, Path], tmp_path: Path) -> None:
    manifest = tmp_path / "moved.csv"
    shutil.copy(job[0], manifest)
    arguments = ["--videos-per-shard", 7, "--task", 1, "--num-tasks", 2, "--dry-run"]
    code, output = outcome(extract_main, "run", manifest, tmp_path / "out", *arguments)
    assert code == 0
    assert "10 videos in 2 shards" in output
    assert "missing   10 files" in output
    assert "frames" not in output
    assert not (tmp_path / "out").exists()


def test_dry_run_rejects_what_a_run_rejects(job: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, shards = job
    before = tree(tmp_path)
    arguments = ["--videos-per-shard", 7, "--size", "256x256", "--dry-run"]
    code, output = outcome(extract_main, "run", manifest, shards, *arguments)
    assert (code, "width: 340 is now 256" in output) == (1, True)
    code, output = outcome(extract_main, "run", manifest, manifest, "--dry-run")
    assert (code, "not a folder" in output) == (1, True)
    code, output = outcome(extract_main, "submit", manifest, shards, "--", "--dry-run")
    assert (code, "put it before the --" in output) == (2, True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("frames", [12, 300])
def test_frame_count_does_not_follow_from_a_nominal_rate(tmp_path: Path, frames: int) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=1000)  # as WebM with stamps in whole milliseconds may declare
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts, frame.time_base = 33 * number, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    if frames == 12:
        with open_input(path) as container:
            assert container.streams.video[0].guessed_rate == 1000
    assert estimate_frame_count(path) == pytest.approx(frames, abs=1)


def test_frame_counts_from_headers(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    video = make_video(tmp_path / "a.mp4", "-c:v", "libx264", frames=45)
    without_count = make_video(tmp_path / "a.mkv", "-c:v", "libx264", frames=45)
    assert estimate_frame_count(video) == 45
    assert estimate_frame_count(without_count) == 45
    assert estimate_frame_count(video, Fraction(10)) == 15
    (tmp_path / "text.mp4").write_text("no video")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert estimate_frame_count(tmp_path / "text.mp4") is None
    assert estimate_frame_count(tmp_path / "pipe.mp4") is None
    assert estimate_frame_count(tmp_path / "gone.mp4") is None


def test_dry_run_of_training_writes_nothing(few_shards: Path, tmp_path: Path) -> None:
    arguments = options(optim__epochs=5)
    code, output = outcome(train_main, "pretrain", few_shards, tmp_path / "run", *arguments, "--dry-run")
    assert code == 0, output
    # 24 videos in batches of 8, without a remainder.
    assert "steps       15: 5 epochs of 3 steps, 8 samples per step" in output
    assert "8 samples:" in output
    assert output.endswith("nothing was written\n")
    code, output = outcome(train_main, "finetune", few_shards, tmp_path / "run", *finetune_options(5), "--dry-run")
    assert code == 0, output
    assert "24 videos, 2 classes" in output
    assert "steps       15: 5 epochs of 3 steps, 8 samples per step" in output
    assert list(tmp_path.iterdir()) == []


def finetune_options(epochs: int, *, all_videos: bool = True) -> list[str]:
    pretrain = options(all_videos=all_videos, optim__epochs=epochs)
    return [*(word.replace("demo", "finetune-demo") for word in pretrain), "--from", "scratch"]


def test_dry_run_of_training_reads_the_last_checkpoint(few_shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert outcome(train_main, "finetune", few_shards, run_dir, *finetune_options(1))[0] == 0
    before = tree(tmp_path)
    code, output = outcome(train_main, "finetune", few_shards, run_dir, *finetune_options(1), "--dry-run")
    assert code == 0
    assert "Continuing after step 3 of 3" in output
    assert "All steps are completed" in output
    code, output = outcome(train_main, "finetune", few_shards, run_dir, *finetune_options(2), "--dry-run")
    assert (code, "optim.epochs: 1 is now 2" in output) == (1, True)
    arguments = [*finetune_options(1, all_videos=False), "--split-column", "x"]
    code, output = outcome(train_main, "finetune", few_shards, run_dir, *arguments, "--dry-run")
    assert (code, "split column 'x' is not in the shards" in output) == (1, True)
    assert tree(tmp_path) == before


def test_preview_as_jpeg(few_shards: Path, tmp_path: Path) -> None:
    arguments = ["--video", "left-clouds-00", "--frames", 1, "--start", 5]
    assert outcome(extract_main, "preview", few_shards, *arguments, "--output", tmp_path / "p.jpg")[0] == 0
    with Image.open(tmp_path / "p.jpg") as picture:
        assert picture.format == "JPEG"
    code, output = outcome(extract_main, "preview", few_shards, *arguments, "--output", tmp_path / "p.bmp")
    assert (code, "must end in .png, .jpg, .gif" in output) == (1, True)
