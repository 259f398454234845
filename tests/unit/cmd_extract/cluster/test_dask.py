from __future__ import annotations

from pathlib import Path

import pytest

from cmd_extract.cluster.watched_extract import WatchedExtract
from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.video import ExtractedVideo
from cmd_extract.errors import VideoError

BINARY = FfmpegBinary(path="", version="")


def die(source: Path, *_: object) -> ExtractedVideo:
    raise SystemExit(source.name)


def begin(watched: WatchedExtract, attempt: str, *names: str) -> None:
    for name in names:
        with pytest.raises(SystemExit):
            watched(Path(name), ExtractConfig(), Path("scratch") / attempt / "videos" / "7", BINARY)


def test_the_video_at_which_every_worker_died_is_the_culprit(tmp_path: Path) -> None:
    watched = WatchedExtract(extract=die, notes=tmp_path / "begun")
    assert watched.culprit() is None
    begin(watched, "one", "a", "b")
    assert watched.culprit() is None, "one death may be chance"
    begin(watched, "two", "a", "b")
    assert watched.culprit() == Path("b")
    begin(watched, "three", "a")
    assert watched.culprit() is None


def test_what_is_blamed_fails_and_is_not_touched(tmp_path: Path) -> None:
    watched = WatchedExtract(extract=die, notes=tmp_path / "begun", blamed=frozenset({Path("b")}))
    with pytest.raises(VideoError) as failed:
        watched(Path("b"), ExtractConfig(), tmp_path / "x" / "y" / "z", BINARY)
    assert failed.value.stage == "crash"
    begin(watched, "one", "a")
