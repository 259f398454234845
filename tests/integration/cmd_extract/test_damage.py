"""Damaged sources: grids and keyframes equal those of a plain FFmpeg decode, and all damage is reported."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.keyframes import KeyframeEncoder
from cmd_extract.decode.own_stream import use_own_vectors
from cmd_extract.decode.source import open_input, probe
from cmd_extract.decode.spool import MotionStream
from cmd_extract.decode.video import ExtractedVideo, check_frames, extract_video, same_times
from cmd_extract.errors import VideoError
from cmd_extract.schema import Damage
from tests.integration.cmd_extract.extraction import MakeVideo

DAMAGED = {"ucf_bitflips.avi", "kinetics_bitflips.mp4", "ucf_truncated.avi"}
CHECKED_FRAMES = 16


def config_of_source_size(source: Path, transcode: str, frames: bool = False) -> ExtractConfig:
    info = probe(source)
    size = {"width": info.width, "height": info.height, "frame_short_side": 48}
    return ExtractConfig(**size, transcode=transcode, store_frames=frames)


def extracted(
    source: Path, transcode: str, ffmpeg: FfmpegBinary, folder: Path, *, frames: bool = False
) -> ExtractedVideo:
    folder.mkdir(parents=True)
    return extract_video(source, config_of_source_size(source, transcode, frames), folder, ffmpeg)


def plain_decode(source: Path, frames: int | None = None) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
    """Return grids, masks and I-frame JPEGs from PyAV with one thread and nothing skipped, drawn vector by vector."""
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
def damaged_video(make_video: MakeVideo, tmp_path: Path) -> Path:
    """An MPEG-4 file like a canonical stream, with a flipped bit in every other picture."""
    source = make_video(tmp_path / "a.avi", "-c:v", "mpeg4", "-bf", "0", "-g", "6", source="mandelbrot", frames=40)
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        positions = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size > 400]
    for number, (position, size) in enumerate(positions[1::2]):
        data[position + 200 + 37 * number % (size - 250)] ^= 1 << number % 8
    source.write_bytes(data)
    return source


@pytest.mark.parametrize("frames", [False, True])
def test_damaged_source_equals_a_plain_decode(
    damaged_video: Path, ffmpeg: FfmpegBinary, tmp_path: Path, frames: bool
) -> None:
    video = extracted(damaged_video, "never", ffmpeg, tmp_path / "never", frames=frames)
    assert video.own_vectors
    assert Damage.DECODE_ERRORS in video.damage
    grid, valid, pictures = plain_decode(damaged_video)
    assert video.frame_count == len(grid)
    assert_same_grid(video, grid, valid)
    assert keyframes(video) == pictures


def test_auto_does_not_use_vectors_of_a_damaged_source(
    damaged_video: Path, ffmpeg: FfmpegBinary, tmp_path: Path
) -> None:
    config = config_of_source_size(damaged_video, "auto")
    assert use_own_vectors(damaged_video, probe(damaged_video), config), "the headers are intact"
    auto, always = (extracted(damaged_video, mode, ffmpeg, tmp_path / mode) for mode in ("auto", "always"))
    assert not auto.own_vectors
    assert Damage.DECODE_ERRORS in auto.damage
    for name in ("grid", "valid", "keyframe_jpeg"):
        assert getattr(auto, name).read_bytes() == getattr(always, name).read_bytes()


@pytest.mark.parametrize("transcode", ["always", "auto", "never"])
def test_silently_concealed_damage_is_reported(
    make_video: MakeVideo, ffmpeg: FfmpegBinary, tmp_path: Path, transcode: str
) -> None:
    options = ("-c:v", "libx264", "-bf", "0", "-g", "12", "-x264-params", "slices=2:ref=1")
    source = make_video(tmp_path / "a.h264", *options, source="mandelbrot", frames=26)
    assert not extracted(source, transcode, ffmpeg, tmp_path / "intact").damage
    units = source.read_bytes().split(b"\0\0\1")
    slices = [number for number, unit in enumerate(units) if unit and unit[0] & 31 in (1, 5)]
    del units[slices[2 * 5 + 1]]  # the second slice of a P-frame
    source.write_bytes(b"\0\0\1".join(units))
    video = extracted(source, transcode, ffmpeg, tmp_path / "damaged")
    assert video.damage == Damage.DECODE_ERRORS
    assert video.frame_count == 26


def test_frames_hidden_by_an_edit_list_are_not_missing(
    make_video: MakeVideo, ffmpeg: FfmpegBinary, tmp_path: Path
) -> None:
    source = make_video(tmp_path / "a.mp4", "-c:v", "libx264", "-g", "60", source="mandelbrot", frames=120)
    cut = tmp_path / "cut.mp4"
    command = [ffmpeg.path, "-loglevel", "error", "-ss", "1.5", "-i", str(source), "-t", "1.6", "-c", "copy"]
    subprocess.run([*command, "-movflags", "+faststart", str(cut)], check=True)
    with av.open(str(cut)) as container:
        stored, shown = container.streams.video[0].frames, sum(1 for _ in container.decode(video=0))
    assert shown < 0.8 * stored, "the edit list hides frames"
    for number, transcode in enumerate(("always", "never")):
        assert extracted(cut, transcode, ffmpeg, tmp_path / str(number)).damage == Damage.NONE
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 4])
    assert Damage.FRAMES_MISSING in extracted(cut, "always", ffmpeg, tmp_path / "truncated").damage


@pytest.mark.parametrize("transcode", ["always", "auto", "never"])
@pytest.mark.parametrize("missing", [0.5, 0.8])
def test_unfinished_download_yields_the_frames_that_decode(
    make_video: MakeVideo, ffmpeg: FfmpegBinary, tmp_path: Path, transcode: str, missing: float
) -> None:
    options = ("-c:v", "libx264", "-bf", "0", "-refs", "1", "-g", "12", "-movflags", "+faststart")
    source = make_video(tmp_path / "a.mp4", *options, source="mandelbrot", frames=60, size="64x48")
    data = bytearray(source.read_bytes())
    data[-int(missing * (len(data) - data.index(b"mdat"))) :] = bytes(int(missing * (len(data) - data.index(b"mdat"))))
    source.write_bytes(data)
    video = extracted(source, transcode, ffmpeg, tmp_path / "work", frames=True)
    assert 1 < video.frame_count < 40
    assert video.damage == Damage.DECODE_ERRORS | Damage.FRAMES_MISSING
    np.testing.assert_allclose(np.diff(video.pts_seconds)[:5], 1 / 30)


def test_nothing_decodes_shows_the_first_error(make_video: MakeVideo, ffmpeg: FfmpegBinary, tmp_path: Path) -> None:
    options = ("-c:v", "libx264", "-movflags", "+faststart")
    source = make_video(tmp_path / "a.mp4", *options, frames=5, size="64x48")
    data = bytearray(source.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    source.write_bytes(data)
    with pytest.raises(VideoError) as failure:
        extracted(source, "always", ffmpeg, tmp_path / "work")
    assert failure.value.stage == "transcode"
    assert "NAL" in failure.value.reason
    assert "Terminating thread" not in failure.value.reason


@pytest.mark.parametrize("transcode", ["always", "never"])
def test_encrypted_video_is_named(make_video: MakeVideo, ffmpeg: FfmpegBinary, tmp_path: Path, transcode: str) -> None:
    keys = (
        "-encryption_key",
        "76a6c65c5ea762046bd749a2e632ccbb",
        "-encryption_kid",
        "a7e61c373e219033c21091fa607bf3b8",
    )
    options = ("-c:v", "libx264", "-encryption_scheme", "cenc-aes-ctr", *keys)
    source = make_video(tmp_path / "a.mp4", *options, frames=15, size="64x48")
    with pytest.raises(VideoError, match="the video is encrypted") as failure:
        extracted(source, transcode, ffmpeg, tmp_path / "work")
    assert failure.value.stage == "probe"


def test_real_files_with_own_vectors(real_videos: Path, ffmpeg: FfmpegBinary, tmp_path: Path) -> None:
    checked = set()
    for number, source in enumerate(sorted((real_videos / "formats").glob("*/*"))):
        try:
            video = extracted(source, "never", ffmpeg, tmp_path / f"{number}-never")
        except (VideoError, ValueError):  # not a video, no vectors available, or an odd size
            continue
        checked.add(source.name)
        damaged = source.name in DAMAGED
        assert (Damage.DECODE_ERRORS in video.damage) == damaged, source.name
        grid, valid, pictures = plain_decode(source, None if damaged else CHECKED_FRAMES)
        assert_same_grid(video, grid, valid)
        assert keyframes(video)[: len(pictures)] == pictures
        is_canonical = use_own_vectors(source, probe(source), config_of_source_size(source, "auto"))
        if is_canonical or damaged:
            auto = extracted(source, "auto", ffmpeg, tmp_path / f"{number}-auto")
            assert auto.own_vectors == (is_canonical and not damaged)
            assert auto.damage == video.damage
            if auto.own_vectors:
                assert_same_grid(auto, grid, valid)
    assert len(checked) >= 20
    assert checked > DAMAGED


def test_time_stamps_of_packed_b_frames_increase(real_videos: Path, ffmpeg: FfmpegBinary, tmp_path: Path) -> None:
    source = real_videos / "formats" / "torchvision" / "RATRACE_wave_f_nm_np1_fr_goo_37.avi"
    bare, full = (extracted(source, "never", ffmpeg, tmp_path / str(frames), frames=frames) for frames in (False, True))
    np.testing.assert_array_equal(bare.pts_seconds, full.pts_seconds)
    assert np.diff(full.pts_seconds).min() > 0


def test_time_stamps_of_frames_and_vectors_must_agree() -> None:
    times, base = np.arange(6) * 40, Fraction(1, 1000)
    stream = MotionStream(
        types=np.array([b"I", *[b"P"] * 5]),
        stamps=times,
        has_stamp=np.ones(6, bool),
        keyframe_sizes=np.array([9]),
    )
    assert same_times(times + 7000, stream, base)
    assert same_times(times + (np.arange(6) == 2), stream, base), "one tick"
    assert not same_times(times + 40 * (np.arange(6) > 3), stream, base)
    unknown = replace(stream, has_stamp=np.arange(6) != 2)
    assert same_times(times + 40 * (np.arange(6) == 2), unknown, base)
    assert not same_times(times * 2, unknown, base)
    assert same_times(times * 2, replace(stream, has_stamp=np.zeros(6, bool)), base)


def test_frames_and_keyframes_must_match_the_vectors() -> None:
    types = np.array([b"I", b"P", b"P", b"I"])
    common = {"types": types, "stamps": np.zeros(4, np.int64), "has_stamp": np.zeros(4, bool)}
    stream = MotionStream(**common, keyframe_sizes=np.array([9, 9]), keyframe_numbers=np.array([0, 3]))
    check_frames(stream, 4)
    with pytest.raises(VideoError, match="4 frames with motion vectors but 5 JPEG frames"):
        check_frames(stream, 5)
    with pytest.raises(VideoError, match=r"no frame of the video could be decoded: missing picture"):
        check_frames(stream, 0, "missing picture")
    with pytest.raises(VideoError, match="2 keyframe JPEGs do not match 2 I-frames"):
        check_frames(replace(stream, keyframe_numbers=np.array([0, 2])), 4)
    with pytest.raises(VideoError, match="no I-frame"):
        check_frames(replace(stream, types=np.array([b"P"] * 4)), 4)
