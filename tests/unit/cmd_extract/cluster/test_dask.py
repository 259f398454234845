from __future__ import annotations

from pathlib import Path

import pytest

from cmd_extract.cluster.dask import TrackedExtract
from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.video import ExtractedVideo
from cmd_extract.errors import VideoError

BINARY = FfmpegBinary(path="", version="")


def die(source: Path, *_: object) -> ExtractedVideo:
    raise SystemExit(source.name)


def extract_until_death(tracked: TrackedExtract, attempt: str, *names: str) -> None:
    for name in names:
        with pytest.raises(SystemExit):
            tracked(Path(name), ExtractConfig(), Path("scratch") / attempt / "videos" / "7", BINARY)


def test_video_at_which_every_worker_died_is_the_culprit(tmp_path: Path) -> None:
    tracked = TrackedExtract(extract=die, log=tmp_path / "begun")
    assert tracked.culprit() is None
    extract_until_death(tracked, "one", "a", "b")
    assert tracked.culprit() is None, "a single death may be a coincidence"
    extract_until_death(tracked, "two", "a", "b")
    assert tracked.culprit() == Path("b")
    extract_until_death(tracked, "three", "a")
    assert tracked.culprit() is None


def test_excluded_video_fails_without_being_opened(tmp_path: Path) -> None:
    tracked = TrackedExtract(extract=die, log=tmp_path / "begun", excluded=frozenset({Path("b")}))
    with pytest.raises(VideoError) as failed:
        tracked(Path("b"), ExtractConfig(), tmp_path / "x" / "y" / "z", BINARY)
    assert failed.value.stage == "crash"
    extract_until_death(tracked, "one", "a")
