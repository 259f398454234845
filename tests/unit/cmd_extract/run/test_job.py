from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.run.job import RunJob


def test_remote_workers_record_their_own_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = FfmpegBinary(path="ffmpeg", version="ffmpeg version 7.1")
    config = ExtractConfig(transcode="auto")
    job = RunJob(root=tmp_path, out=tmp_path, scratch=tmp_path, config=config, binary=binary)
    local = job.described["keyframes"], job.software["av"]
    pickled = pickle.dumps(job)
    monkeypatch.setattr("cmd_extract.config.version", lambda name: "0.1")
    monkeypatch.setattr("cmd_extract.run.job.version", lambda name: "0.1")
    remote = pickle.loads(pickled)
    assert remote == job
    assert (remote.described["keyframes"], remote.software["av"]) == ("PyAV 0.1, simplejpeg 0.1", "0.1")
    assert (job.described["keyframes"], job.software["av"]) == local
