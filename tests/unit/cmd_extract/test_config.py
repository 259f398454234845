from __future__ import annotations

import os
import pickle
import signal
import time
from pathlib import Path

import pytest

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.run.job import RunJob
from cmd_extract.run.plan import automatic_videos_per_shard, plan_shards
from cmd_extract.schema import VideoRecord
from cmd_extract.system.signals import interruptible


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 341), ("height", 8), ("codec", "hevc"), ("gop", 0), ("quality", 99), ("fps", "fast"), ("fps", "1/0"),
        ("fps", "1e9"), ("frame_short_side", 300), ("jpeg_quality", 1), ("cell_px", 4),
    ],
)  # fmt: skip
def test_bad_values_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        ExtractConfig(**{field: value})


def test_frame_size_keeps_the_geometry() -> None:
    assert ExtractConfig().frame_size == (170, 128)
    assert ExtractConfig(width=256, height=340).frame_size == (128, 170)


def test_default_quality_is_resolved_before_hashing() -> None:
    assert ExtractConfig().describe("x") == ExtractConfig(quality=3).describe("x")
    assert ExtractConfig().describe("x") != ExtractConfig().describe("y")


def records(count: int) -> list[VideoRecord]:
    return [VideoRecord(row=i, video_id=str(i), path=str(i)) for i in range(count)]


@pytest.mark.parametrize("count", [1, 7, 32, 33, 237, 9000])
def test_plan_covers_every_row_once_in_order(count: int) -> None:
    plans = plan_shards(records(count))
    assert [r.row for p in plans for r in p.records] == list(range(count))
    assert max(len(p.records) for p in plans) == min(automatic_videos_per_shard(count), count) <= 256
    assert [p.number for p in plans] == list(range(len(plans)))


def test_plan_refuses_empty_shards() -> None:
    with pytest.raises(ValueError, match="videos_per_shard: 0"):
        plan_shards(records(3), 0)


def test_an_interrupt_that_the_interpreter_drops_comes_again() -> None:
    class Witness:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            # Within a destructor the exception goes nowhere.
            for _ in range(1000):
                pass

    def work() -> None:
        Witness()
        time.sleep(5)
        pytest.fail("the interrupt was lost")

    with pytest.raises(KeyboardInterrupt), interruptible():
        work()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_worker_elsewhere_tells_the_versions_that_it_works_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = FfmpegBinary(path="ffmpeg", version="ffmpeg version 7.1")
    config = ExtractConfig(transcode="auto")
    job = RunJob(root=tmp_path, out=tmp_path, scratch=tmp_path, config=config, binary=binary)
    here = job.described["keyframes"], job.software["av"]
    sent = pickle.dumps(job)
    monkeypatch.setattr("cmd_extract.config.version", lambda name: "0.1")
    monkeypatch.setattr("cmd_extract.run.job.version", lambda name: "0.1")
    arrived = pickle.loads(sent)
    assert arrived == job
    assert (arrived.described["keyframes"], arrived.software["av"]) == ("PyAV 0.1, simplejpeg 0.1", "0.1")
    assert (job.described["keyframes"], job.software["av"]) == here
