"""Damaged sources: grids and keyframes as FFmpeg decodes them, and no damage unnoticed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.ffmpeg_log import read_log
from cmd_extract.decode.keyframes import KeyframeEncoder
from cmd_extract.decode.own_stream import use_own_vectors
from cmd_extract.decode.source import open_input, probe
from cmd_extract.decode.spool import SpooledStream
from cmd_extract.decode.video import ExtractedVideo, _check_frames, extract_video
from cmd_extract.errors import VideoError
from cmd_extract.schema import Damage

MakeVideo = Callable[..., Path]
DAMAGED = {"ucf_bitflips.avi", "kinetics_bitflips.mp4", "ucf_truncated.avi"}
_SOME_FRAMES = 16


def own_size(source: Path, transcode: str, frames: bool = False) -> ExtractConfig:
    facts = probe(source)
    size = {"width": facts.width, "height": facts.height, "frame_short_side": 48}
    return ExtractConfig(**size, transcode=transcode, store_frames=frames)


def extracted(
    source: Path, transcode: str, ffmpeg: FfmpegBinary, folder: Path, *, frames: bool = False
) -> ExtractedVideo:
    folder.mkdir(parents=True)
    return extract_video(source, own_size(source, transcode, frames), folder, ffmpeg)


def plain_decode(source: Path, frames: int | None = None) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
    """Grid, mask and I-frames by PyAV with one thread and nothing skipped, painted vector by vector."""
    grids, valids, pictures = [], [], []
    with open_input(source) as container:
        stream = container.streams[probe(source).stream_index]
        stream.codec_context.options = {"flags2": "+export_mvs"}
        stream.thread_type = "NONE"
        for packet in container.demux(stream):
            try:
                decoded = stream.codec_context.decode(packet)
            except av.error.InvalidDataError:
                continue
            for frame in decoded:
                grid = np.zeros((2, -(-frame.height // 8), -(-frame.width // 8)), np.int16)
                valid = np.zeros(grid.shape[1:], bool)
                intra = "?IPB"[int(frame.pict_type)] == "I"
                for v in () if intra else frame.side_data.get("MOTION_VECTORS") or ():
                    if v.source < 0:
                        top, left = (v.dst_y - v.h // 2) // 8, (v.dst_x - v.w // 2) // 8
                        area = np.s_[max(top, 0) : top + v.h // 8, max(left, 0) : left + v.w // 8]
                        grid[0][area], grid[1][area] = (-m * 4 // v.motion_scale for m in (v.motion_x, v.motion_y))
                        valid[area] = True
                grids.append(grid)
                valids.append(valid)
                if intra:
                    pictures.append(KeyframeEncoder(3)(frame))
                if len(grids) == frames:
                    return np.stack(grids), np.stack(valids), pictures
    return np.stack(grids), np.stack(valids), pictures


def assert_same_grid(video: ExtractedVideo, grid: np.ndarray, valid: np.ndarray) -> None:
    stored = np.fromfile(video.grid, np.int16).reshape(-1, *grid.shape[1:])
    np.testing.assert_array_equal(stored[: len(grid)], grid)
    np.testing.assert_array_equal(np.fromfile(video.valid, bool).reshape(-1, *valid.shape[1:])[: len(valid)], valid)


def keyframes(video: ExtractedVideo) -> list[bytes]:
    data, ends = video.keyframe_jpeg.read_bytes(), np.cumsum(video.keyframe_sizes)
    return [data[end - size : end] for end, size in zip(ends, video.keyframe_sizes, strict=True)]


@pytest.fixture
def garbled(make_video: MakeVideo, tmp_path: Path) -> Path:
    """A canonical-like MPEG-4 file with a flipped bit in every other picture."""
    source = make_video(tmp_path / "a.avi", "-c:v", "mpeg4", "-bf", "0", "-g", "6", source="mandelbrot", frames=40)
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size > 400]
    for number, (position, size) in enumerate(places[1::2]):
        data[position + 200 + 37 * number % (size - 250)] ^= 1 << number % 8
    source.write_bytes(data)
    return source


@pytest.mark.parametrize("frames", [False, True])
def test_a_damaged_source_is_read_as_a_plain_decode_reads_it(
    garbled: Path, ffmpeg: FfmpegBinary, tmp_path: Path, frames: bool
) -> None:
    video = extracted(garbled, "never", ffmpeg, tmp_path / "never", frames=frames)
    assert video.own_vectors
    assert Damage.DECODE_ERRORS in video.damage
    grid, valid, pictures = plain_decode(garbled)
    assert video.frame_count == len(grid)
    assert_same_grid(video, grid, valid)
    assert keyframes(video) == pictures


def test_auto_does_not_take_vectors_of_a_damaged_source(garbled: Path, ffmpeg: FfmpegBinary, tmp_path: Path) -> None:
    assert use_own_vectors(garbled, probe(garbled), own_size(garbled, "auto"))
    auto, always = (extracted(garbled, how, ffmpeg, tmp_path / how) for how in ("auto", "always"))
    assert not auto.own_vectors
    assert Damage.DECODE_ERRORS in auto.damage
    for name in ("grid", "valid", "keyframe_jpeg"):
        assert getattr(auto, name).read_bytes() == getattr(always, name).read_bytes()


@pytest.mark.parametrize("transcode", ["always", "auto", "never"])
def test_damage_that_is_concealed_without_a_word_is_noticed(
    make_video: MakeVideo, ffmpeg: FfmpegBinary, tmp_path: Path, transcode: str
) -> None:
    options = ("-c:v", "libx264", "-bf", "0", "-g", "12", "-x264-params", "slices=2:ref=1")
    source = make_video(tmp_path / "a.h264", *options, source="mandelbrot", frames=26)
    assert not extracted(source, transcode, ffmpeg, tmp_path / "whole").damage
    units = source.read_bytes().split(b"\0\0\1")
    slices = [number for number, unit in enumerate(units) if unit and unit[0] & 31 in (1, 5)]
    del units[slices[2 * 5 + 1]]  # the second slice of a P-frame
    source.write_bytes(b"\0\0\1".join(units))
    video = extracted(source, transcode, ffmpeg, tmp_path / "short")
    assert video.damage == Damage.DECODE_ERRORS
    assert video.frame_count == 26


def test_frames_that_an_edit_list_hides_are_not_missing(
    make_video: MakeVideo, ffmpeg: FfmpegBinary, tmp_path: Path
) -> None:
    source = make_video(tmp_path / "a.mp4", "-c:v", "libx264", "-g", "60", source="mandelbrot", frames=120)
    cut = tmp_path / "cut.mp4"
    command = [ffmpeg.path, "-loglevel", "error", "-ss", "1.5", "-i", str(source), "-t", "1.6", "-c", "copy"]
    subprocess.run([*command, "-movflags", "+faststart", str(cut)], check=True)
    with av.open(str(cut)) as container:
        held, shown = container.streams.video[0].frames, sum(1 for _ in container.decode(video=0))
    assert shown < 0.8 * held, "or there is no edit list to speak of"
    for number, transcode in enumerate(("always", "never")):
        assert extracted(cut, transcode, ffmpeg, tmp_path / str(number)).damage == Damage.NONE
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 4])
    assert Damage.FRAMES_MISSING in extracted(cut, "always", ffmpeg, tmp_path / "short").damage


def test_real_files_with_vectors_of_their_own(real_videos: Path, ffmpeg: FfmpegBinary, tmp_path: Path) -> None:
    looked_at = set()
    for number, source in enumerate(sorted((real_videos / "formats").glob("*/*"))):
        try:
            video = extracted(source, "never", ffmpeg, tmp_path / f"{number}-never")
        except (VideoError, ValueError):  # no video, no vectors, or an odd size
            continue
        looked_at.add(source.name)
        damaged = source.name in DAMAGED
        assert (Damage.DECODE_ERRORS in video.damage) == damaged, source.name
        grid, valid, pictures = plain_decode(source, None if damaged else _SOME_FRAMES)
        assert_same_grid(video, grid, valid)
        assert keyframes(video)[: len(pictures)] == pictures
        fits = use_own_vectors(source, probe(source), own_size(source, "auto"))
        if fits or damaged:
            auto = extracted(source, "auto", ffmpeg, tmp_path / f"{number}-auto")
            assert auto.own_vectors == (fits and not damaged)
            assert auto.damage == video.damage
            if auto.own_vectors:
                assert_same_grid(auto, grid, valid)
    assert len(looked_at) >= 20
    assert looked_at > DAMAGED


def test_times_of_packed_b_frames_do_not_go_back(real_videos: Path, ffmpeg: FfmpegBinary, tmp_path: Path) -> None:
    source = real_videos / "formats" / "torchvision" / "RATRACE_wave_f_nm_np1_fr_goo_37.avi"
    bare, full = (extracted(source, "never", ffmpeg, tmp_path / str(frames), frames=frames) for frames in (False, True))
    np.testing.assert_allclose(bare.pts_seconds, full.pts_seconds, atol=1e-3)


def test_every_frame_must_have_its_own_time() -> None:
    times = np.arange(6) / 25
    stream = SpooledStream(types=np.array([b"I", *[b"P"] * 5]), pts_seconds=times, keyframe_sizes=np.array([9]))
    first = np.array([0])
    _check_frames(times + 7, stream, first, None)
    _check_frames(np.where(np.arange(6) == 2, np.nan, times), stream, first, None)
    with pytest.raises(VideoError, match="different time stamps"):
        _check_frames(times + 0.04 * (np.arange(6) > 3), stream, first, None)
    with pytest.raises(VideoError, match="different time stamps"):
        _check_frames(np.where(np.arange(6) == 0, np.nan, times * 2), stream, first, None)
    _check_frames(times, stream, first, np.array([5.0]))  # beside a canonical stream, whose own times mean nothing


@pytest.mark.parametrize(
    ("text", "errors", "damage"),
    [
        ("", (), False),
        ("[mpeg4 @ 0x1f] [warning] Invalid and inefficient vfw-avi packed B-frames detected\nmore of it\n", (), False),
        ("[vist#0:0/h264 @ 0x1] [dec:h264 @ 0x2] [warning] corrupt decoded frame\n", (), True),
        ("[h264 @ 0x1f] [error] left block unavailable\n    Last message repeated 2 times\n[warning] x\n",
         ("left block unavailable", "Last message repeated 2 times"), True),
        ("ffmpeg: out of paper\n", ("ffmpeg: out of paper",), True),
    ],
)  # fmt: skip
def test_what_the_log_says(tmp_path: Path, text: str, errors: tuple[str, ...], damage: bool) -> None:
    (tmp_path / "log").write_text(text)
    log = read_log(tmp_path / "log")
    assert (log.errors, log.damage) == (errors, damage)
