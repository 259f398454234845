from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import click
import pytest
from PIL import Image

from cmd_extract.cli.main import main as extract_main
from cmd_extract.decode.source import frames_by_header
from cmd_train.cli.main import main as train_main
from tests.command_line import call as run_command
from tests.integration.cmd_train.training import options


def call(command: click.Command, *arguments: object) -> tuple[int, str]:
    result = run_command(command, *arguments)
    return result.exit_code, result.output


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder, with size and time of change."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


@pytest.fixture
def job(few_shards: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A manifest and a copy of what was made of it."""
    shutil.copytree(few_shards, tmp_path / "shards")
    return few_shards.parent / "videos" / "manifest.csv", tmp_path / "shards"


def test_a_dry_run_tells_of_a_new_folder_and_does_not_make_it(job: tuple[Path, Path], tmp_path: Path) -> None:
    before = tree(tmp_path)
    code, said = call(extract_main, "run", job[0], tmp_path / "new" / "out", "--videos-per-shard", 7, "--dry-run")
    assert code == 0
    assert "24 videos in 4 shards" in said
    assert "0 shards, 0 videos\nto make   4 shards, 24 videos" in said
    # What the headers promise is what the videos hold: 24 times 24 frames.
    assert "frames    about 576, by the headers of 24 files" in said
    assert tree(tmp_path) == before


def test_a_dry_run_tells_what_is_left(job: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, shards = job
    (shards / "shard-00001.h5").unlink()
    (shards / "index.json").unlink()
    before = tree(tmp_path)
    code, said = call(extract_main, "run", manifest, shards, "--videos-per-shard", 7, "--dry-run")
    assert code == 0
    assert "done      3 shards, 17 videos\nto make   1 shards, 7 videos" in said
    left = sum(path.stat().st_size for path in shards.glob("shard-*.h5")) / 17 * 7
    assert f"disk      about {left / 1e6:.1f} MB more, as the finished shards are" in said
    assert tree(tmp_path) == before


def test_a_dry_run_names_missing_files_and_takes_a_share(job: tuple[Path, Path], tmp_path: Path) -> None:
    manifest = tmp_path / "moved.csv"
    shutil.copy(job[0], manifest)
    words = ["--videos-per-shard", 7, "--task", 1, "--num-tasks", 2, "--dry-run"]
    code, said = call(extract_main, "run", manifest, tmp_path / "out", *words)
    assert code == 0
    assert "10 videos in 2 shards" in said
    assert "missing   10 files" in said
    assert "frames" not in said
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_what_a_run_refuses(job: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, shards = job
    before = tree(tmp_path)
    words = ["--videos-per-shard", 7, "--size", "256x256", "--dry-run"]
    code, said = call(extract_main, "run", manifest, shards, *words)
    assert (code, "width: 340 is now 256" in said) == (1, True)
    code, said = call(extract_main, "run", manifest, manifest, "--dry-run")
    assert (code, "not a folder" in said) == (1, True)
    code, said = call(extract_main, "submit", manifest, shards, "--", "--dry-run")
    assert (code, "say it before the --" in said) == (2, True)
    assert tree(tmp_path) == before


def test_lengths_by_the_header(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    video = make_video(tmp_path / "a.mp4", "-c:v", "libx264", frames=45)
    without_count = make_video(tmp_path / "a.mkv", "-c:v", "libx264", frames=45)
    assert frames_by_header(video) == 45
    assert frames_by_header(without_count) == 45
    assert frames_by_header(video, Fraction(10)) == 15
    (tmp_path / "text.mp4").write_text("no video")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert frames_by_header(tmp_path / "text.mp4") is None
    assert frames_by_header(tmp_path / "pipe.mp4") is None
    assert frames_by_header(tmp_path / "gone.mp4") is None


def test_a_training_is_rehearsed_without_a_trace(few_shards: Path, tmp_path: Path) -> None:
    words = options(optim__epochs=5)
    code, said = call(train_main, "pretrain", few_shards, tmp_path / "run", *words, "--dry-run")
    assert code == 0, said
    # 24 videos in batches of 8, of which none is left over.
    assert "steps       15: 5 epochs of 3, 8 samples each" in said
    assert "8 samples, of which" in said
    assert said.endswith("nothing was written\n")
    code, said = call(train_main, "finetune", few_shards, tmp_path / "run", *_labelled(5), "--dry-run")
    assert code == 0, said
    assert "24 videos of 2 classes" in said
    assert "steps       15: 5 epochs of 3, 8 samples each" in said
    assert list(tmp_path.iterdir()) == []


def _labelled(epochs: int) -> list[str]:
    words = [word.replace("demo", "finetune-demo") for word in options(optim__epochs=epochs)]
    return [*words, "--from", "scratch"]


def test_a_rehearsal_goes_by_the_last_checkpoint(few_shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert call(train_main, "finetune", few_shards, run_dir, *_labelled(1))[0] == 0
    before = tree(tmp_path)
    code, said = call(train_main, "finetune", few_shards, run_dir, *_labelled(1), "--dry-run")
    assert code == 0
    assert "continuing after step 3 of 3" in said
    assert "all steps are done" in said
    code, said = call(train_main, "finetune", few_shards, run_dir, *_labelled(2), "--dry-run")
    assert (code, "optim.epochs: 1 is now 2" in said) == (1, True)
    code, said = call(train_main, "finetune", few_shards, run_dir, *_labelled(1), "--split-column", "x", "--dry-run")
    assert (code, "split_column: 'x' is not in the shards" in said) == (1, True)
    assert tree(tmp_path) == before


def test_a_preview_may_be_a_jpeg(few_shards: Path, tmp_path: Path) -> None:
    words = ["--video", "left-clouds-00", "--frames", 1, "--start", 5]
    assert call(extract_main, "preview", few_shards, *words, "--output", tmp_path / "p.jpg")[0] == 0
    with Image.open(tmp_path / "p.jpg") as picture:
        assert picture.format == "JPEG"
    code, said = call(extract_main, "preview", few_shards, *words, "--output", tmp_path / "p.bmp")
    assert (code, "must end in .png, .jpg or .gif" in said) == (1, True)
