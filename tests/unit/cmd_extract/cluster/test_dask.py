from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from cmd_extract.cluster.dask import TrackedExtract, build_on_worker
from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.video import ExtractedVideo, extract_video
from cmd_extract.errors import FfmpegError, VideoError
from cmd_extract.run.finished import FinishedShard
from cmd_extract.run.job import RunJob
from cmd_extract.run.plan import ShardPlan
from cmd_extract.run.work import FailureLimit, ShardWork
from cmd_extract.schema import ATTR_SOFTWARE, VideoRecord

BINARY = FfmpegBinary(path="", version="")


def die(source: Path, *_: object) -> ExtractedVideo:
    raise SystemExit(source.name)


def extract_until_death(tracked: TrackedExtract, attempt: str, *names: str) -> None:
    for name in names:
        workdir = Path("scratch") / attempt / "videos" / name  # named after the manifest row
        with pytest.raises(SystemExit):
            tracked(workdir / "source.mp4", ExtractConfig(), workdir, BINARY)


def test_video_at_which_every_worker_died_is_the_culprit(tmp_path: Path) -> None:
    tracked = TrackedExtract(extract=die, log=tmp_path / "begun")
    assert tracked.culprit() is None
    extract_until_death(tracked, "one", "6", "7")
    assert tracked.culprit() is None, "a single death may be a coincidence"
    extract_until_death(tracked, "two", "6", "7")
    assert tracked.culprit() == "7"
    extract_until_death(tracked, "three", "6")
    assert tracked.culprit() is None


def test_excluded_video_fails_without_being_opened(tmp_path: Path) -> None:
    tracked = TrackedExtract(extract=die, log=tmp_path / "begun", excluded=frozenset({"7"}))
    with pytest.raises(VideoError) as failed:
        tracked(Path("b"), ExtractConfig(), tmp_path / "x" / "y" / "7", BINARY)
    assert failed.value.stage == "crash"
    extract_until_death(tracked, "one", "6")


def write_ffmpeg(path: Path, version: str, real: str) -> Path:
    """Write an FFmpeg that reports another version."""
    path.parent.mkdir()
    other = f'echo "ffmpeg version {version} Copyright"'
    path.write_text(f'#!/bin/sh\ncase "$*" in -version) {other};; *) exec {real} "$@";; esac\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def build(
    make_video: Callable[..., Path], ffmpeg: FfmpegBinary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., FinishedShard]:
    """Build a shard as a Dask worker whose default FFmpeg has version 6.1-worker."""
    make_video(tmp_path / "v.mp4", "-c:v", "libx264", frames=3, size="64x48")
    monkeypatch.setenv("PATH", str(write_ffmpeg(tmp_path / "bin" / "ffmpeg", "6.1-worker", ffmpeg.path).parent))
    plan = ShardPlan.of(0, [VideoRecord(row=0, video_id="v", path="v.mp4")])
    config = ExtractConfig(width=64, height=48, frame_short_side=24)

    def run(path: Path | str, version: str, **changes: object) -> FinishedShard:
        binary = FfmpegBinary(path=str(path), version=f"ffmpeg version {version}")
        job = RunJob(root=tmp_path, out=tmp_path, scratch=tmp_path, config=config, binary=binary)
        work = ShardWork(job=job, scratch=tmp_path, extract=extract_video, limit=FailureLimit())
        return build_on_worker(work, plan, job.described | changes)

    return run


def recorded_ffmpeg(shard: Path) -> str:
    with h5py.File(shard, "r") as file:
        return str(json.loads(file.attrs[ATTR_SOFTWARE])["ffmpeg"])


def test_worker_uses_and_records_its_own_ffmpeg(build: Callable[..., FinishedShard], tmp_path: Path) -> None:
    written = build("/only/on/the/submitting/host/ffmpeg", "6.1-worker").written
    assert (written.videos, written.failures) == (1, 0)
    assert recorded_ffmpeg(tmp_path / written.name) == "ffmpeg version 6.1-worker"


def test_worker_prefers_the_path_of_the_run(
    build: Callable[..., FinishedShard], ffmpeg: FfmpegBinary, tmp_path: Path
) -> None:
    chosen = write_ffmpeg(tmp_path / "shared" / "ffmpeg", "7.0-shared", ffmpeg.path)
    assert build(chosen, "7.0-shared").failures == ()
    assert recorded_ffmpeg(tmp_path / "shard-00000.h5") == "ffmpeg version 7.0-shared"


def test_worker_with_another_ffmpeg_is_refused(
    build: Callable[..., FinishedShard], ffmpeg: FfmpegBinary, tmp_path: Path
) -> None:
    upgraded = write_ffmpeg(tmp_path / "shared" / "ffmpeg", "7.1", ffmpeg.path)
    with pytest.raises(FfmpegError) as refused:
        build(upgraded, "7.0")
    message = str(refused.value)
    assert "found no ffmpeg version 7.0, which this run uses" in message
    assert f"{upgraded} is ffmpeg version 7.1" in message
    assert f"{tmp_path / 'bin' / 'ffmpeg'} is ffmpeg version 6.1-worker" in message
    assert not list(tmp_path.glob("shard-*"))


def test_worker_with_another_release_is_refused(build: Callable[..., FinishedShard], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"would produce different shards \(extractor_version: \d+, expected 99\)"):
        build("ffmpeg", "6.1-worker", extractor_version=99)
    assert not list(tmp_path.glob("shard-*"))
