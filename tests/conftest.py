from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cmd_extract.cli.main import main as extract_main
from cmd_extract.decode.ffmpeg import FfmpegBinary, find_ffmpeg
from cmd_extract.synthetic.dataset import SyntheticConfig, synthesize
from tests.command_line import outcome

REAL_VIDEOS = Path(__file__).resolve().parents[2] / "shared" / "videos"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Tests run in parallel, and more threads than cores would only contend. Also, the number of threads determines the
    # order of summation, so bit-for-bit comparisons require a fixed number.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ffmpeg() -> FfmpegBinary:
    return find_ffmpeg()


@pytest.fixture(scope="session")
def make_video(ffmpeg: FfmpegBinary) -> Callable[..., Path]:
    """Encode a small video: ``make_video(path, "-c:v", "libx264", source="testsrc2", frames=30, size="160x120")``."""

    def make(path: Path, *options: str, source: str = "testsrc2", frames: int = 30, size: str = "160x120") -> Path:
        pattern = f"{source}=size={size}:rate=30"
        command = [ffmpeg.path, "-nostdin", "-loglevel", "error", "-y", "-f", "lavfi", "-i", pattern]
        command += ["-frames:v", str(frames), "-pix_fmt", "yuv420p", "-threads", "1", *options, str(path)]
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(command, check=True)
        return path

    return make


@pytest.fixture(scope="session")
def real_videos() -> Path:
    if not REAL_VIDEOS.is_dir():
        pytest.skip("no real videos: the folder ../shared/videos does not exist")
    return REAL_VIDEOS


@pytest.fixture(scope="session")
def few_shards(tmp_path_factory: pytest.TempPathFactory, ffmpeg: FfmpegBinary) -> Path:
    """Several shards of 24 short synthetic videos."""
    folder = tmp_path_factory.mktemp("few")
    config = SyntheticConfig(videos_per_combination=2, frames=24, motions=("left", "up"))
    manifest = synthesize(config, folder / "videos", ffmpeg_binary=ffmpeg.path, workers=2, progress=lambda *_: None)
    code, output = outcome(extract_main, "run", manifest, folder / "shards", "--workers", 2, "--videos-per-shard", 7)
    assert code == 0, output
    return folder / "shards"
