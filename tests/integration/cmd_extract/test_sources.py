"""Extraction of many kinds of sources: each rule of extract/README.md."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
import simplejpeg

from cmd_extract import schema
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.source import open_input, probe
from cmd_extract.schema import VideoEntry
from cmd_extract.shard.reader import ShardSet
from tests.integration.cmd_extract.drawn_vectors import draw_vectors
from tests.integration.cmd_extract.extraction import PLAIN, X264, MakeVideo, call, extract, only, read_rows


def pictures(shards: ShardSet, entry: VideoEntry) -> np.ndarray:
    return np.stack([simplejpeg.decode_jpeg(j) for j in shards.frame_jpegs(entry, range(entry.frame_count))])


def own_vectors(out: Path) -> dict[str, bool]:
    found = {}
    for path in sorted(out.glob("shard-*.h5")):
        with h5py.File(path) as file:
            ids = [bytes(i).decode() for i in file[schema.VIDEO_ID][:]]
            found |= dict(zip(ids, file[schema.VIDEO_OWN_VECTORS][:].astype(bool).tolist(), strict=True))
    return found


def test_both_readers_write_the_same_bytes(make_video: MakeVideo, tmp_path: Path) -> None:
    pytest.importorskip("mvextractor.videocap")
    shards = []
    for reader in ("pyav", "mvextractor"):
        make_video(tmp_path / reader / "a.mp4", *X264, source="mandelbrot")
        out, failures = extract(tmp_path / reader, "--reader", reader)
        assert not failures
        shards.append((out / "shard-00000.h5").read_bytes())
    assert shards[0] == shards[1]


@pytest.mark.parametrize("options", [PLAIN, (*X264, "-bf", "2", "-g", "20"), ("-c:v", "mpeg4", "-bf", "2", "-g", "9")])
def test_own_vectors_equal_those_of_the_source(make_video: MakeVideo, tmp_path: Path, options: tuple[str, ...]) -> None:
    source = make_video(tmp_path / "a.mp4", *options, frames=50)
    out, failures = extract(tmp_path, "--transcode", "never")
    assert not failures
    shards, entry = only(out)
    grid, valid, types = draw_vectors(source)
    motion = shards.motion(entry, 0, entry.frame_count)
    np.testing.assert_array_equal(motion.valid, valid)
    np.testing.assert_array_equal(motion.grid_quarter_px, grid)
    assert np.abs(grid).max() > 0
    assert entry.keyframe_indices == tuple(i for i, kind in enumerate(types) if kind == "I")
    with av.open(str(source)) as container:
        frames = [f.to_ndarray(format="rgb24", width=64, height=48).astype(int) for f in container.decode(video=0)]
    for i, picture in enumerate(pictures(shards, entry)):
        assert int(np.argmin([np.abs(picture - f).mean() for f in frames])) == i


def test_auto_uses_own_vectors_of_canonical_like_streams_only(make_video: MakeVideo, tmp_path: Path) -> None:
    accepted = {
        "accepted0.mp4": PLAIN,
        "accepted1.mkv": PLAIN,
        "accepted2.avi": ("-c:v", "mpeg4", "-bf", "0", "-g", "12"),
        "accepted3.h264": PLAIN,
        "accepted4.ts": PLAIN,
    }
    rejected = {
        "b-frames.mp4": (*X264, "-bf", "1", "-refs", "1", "-g", "12"),
        "b-frames.avi": ("-c:v", "mpeg4", "-bf", "1", "-g", "12"),
        "gop.mp4": (*X264, "-bf", "0", "-refs", "1", "-g", "13"),
        "gop.avi": ("-c:v", "mpeg4", "-bf", "0", "-g", "13"),
        "references.mp4": (*X264, "-bf", "0", "-refs", "2", "-g", "12"),
        "interlaced.mp4": (*PLAIN, "-flags", "+ilme+ildct"),
        "hevc.mp4": ("-c:v", "libx265", "-x265-params", "log-level=none"),
    }
    for name, options in (accepted | rejected).items():
        make_video(tmp_path / name, *options, source="mandelbrot", frames=26)
    make_video(tmp_path / "size.mp4", *PLAIN, size="168x120", frames=26)
    out, failures = extract(tmp_path, "--transcode", "auto")
    assert not failures
    names = sorted([*accepted, *rejected, "size.mp4"])
    assert {name for name, own in zip(names, own_vectors(out).values(), strict=True) if own} == set(accepted)


def test_never_reports_why_vectors_are_unusable(make_video: MakeVideo, tmp_path: Path) -> None:
    make_video(tmp_path / "hevc.mp4", "-c:v", "libx265", "-x265-params", "log-level=none", frames=5)
    make_video(tmp_path / "vp9.webm", "-c:v", "libvpx-vp9", "-deadline", "realtime", frames=5)
    make_video(tmp_path / "size.mp4", *X264, size="168x120", frames=5)
    make_video(tmp_path / "fine.mp4", *X264, frames=5)
    _, failures = extract(tmp_path, "--transcode", "never")
    assert "no motion vectors available for codec hevc" in failures.pop("hevc.mp4")
    assert "no motion vectors available for codec vp9" in failures.pop("vp9.webm")
    assert "size 168x120 is not the --size 160x120" in failures.pop("size.mp4")
    assert not failures


@pytest.mark.parametrize("suffix", ["mp4", "h264"])
def test_no_frames_changes_nothing_else(make_video: MakeVideo, tmp_path: Path, suffix: str) -> None:
    for name in ("with", "without"):
        # An elementary stream has no time stamps.
        make_video(tmp_path / name / f"a.{suffix}", *X264, source="mandelbrot", frames=40)
    shards, entry = only(extract(tmp_path / "with", "--transcode", "never")[0])
    bare, bare_entry = only(extract(tmp_path / "without", "--transcode", "never", "--no-frames")[0])
    assert bare_entry == entry
    times, bare_times = (s.pts_seconds(entry) for s in (shards, bare))
    np.testing.assert_allclose(bare_times, times, atol=1e-3)
    assert {len(j) for j in bare.frame_jpegs(entry, range(40))} == {0}
    np.testing.assert_array_equal(
        bare.motion(entry, 0, 40).grid_quarter_px, shards.motion(entry, 0, 40).grid_quarter_px
    )
    for number in range(len(entry.keyframe_indices)):
        assert bytes(bare.keyframe_jpeg(entry, number)) == bytes(shards.keyframe_jpeg(entry, number))


@pytest.fixture
def ffmpeg_run(ffmpeg: FfmpegBinary) -> Callable[..., None]:
    def call(*arguments: object) -> None:
        subprocess.run([ffmpeg.path, "-nostdin", "-loglevel", "error", "-y", *map(str, arguments)], check=True)

    return call


def test_rotation_is_applied(make_video: MakeVideo, ffmpeg_run: Callable[..., None], tmp_path: Path) -> None:
    upright = make_video(tmp_path / "upright" / "a.mp4", *X264, frames=5)
    (tmp_path / "rotated").mkdir()
    ffmpeg_run("-display_rotation", 180, "-i", upright, "-c", "copy", tmp_path / "rotated" / "a.mp4")
    first = pictures(*only(extract(tmp_path / "upright")[0])).astype(int)
    second = pictures(*only(extract(tmp_path / "rotated")[0])).astype(int)
    assert np.abs(first[:, ::-1, ::-1] - second).mean() < 6 < np.abs(first - second).mean()


def test_own_vectors_keep_the_coded_orientation(
    make_video: MakeVideo, ffmpeg_run: Callable[..., None], tmp_path: Path
) -> None:
    upright = make_video(tmp_path / "upright" / "a.mp4", *PLAIN, frames=5)
    for name in ("never", "auto"):
        (tmp_path / name).mkdir()
        ffmpeg_run("-display_rotation", 180, "-i", upright, "-c", "copy", tmp_path / name / "a.mp4")
    first = only(extract(tmp_path / "upright", "--transcode", "never")[0])
    second = only(extract(tmp_path / "never", "--transcode", "never")[0])
    np.testing.assert_array_equal(pictures(*first), pictures(*second))
    assert own_vectors(extract(tmp_path / "auto", "--transcode", "auto")[0]) == {"v0": False}


def test_pixel_aspect_ratio_is_ignored(make_video: MakeVideo, tmp_path: Path) -> None:
    make_video(tmp_path / "square" / "a.mp4", *X264, frames=5)
    make_video(tmp_path / "wide" / "a.mp4", *X264, "-vf", "setsar=2/1", frames=5)
    first, second = (pictures(*only(extract(tmp_path / name)[0])) for name in ("square", "wide"))
    np.testing.assert_array_equal(first, second)


def test_variable_frame_rate_keeps_every_frame_and_time_stamp(make_video: MakeVideo, tmp_path: Path) -> None:
    # Time stamps 0, 1, 4, 9, ... thirtieths of a second.
    make_video(tmp_path / "a.mkv", *X264, "-vf", "setpts=N*N/30/TB", "-fps_mode", "passthrough", frames=12)
    shards, entry = only(extract(tmp_path)[0])
    assert entry.frame_count == 12
    times = shards.pts_seconds(entry)
    np.testing.assert_allclose(times, np.arange(12) ** 2 / 30, atol=1e-3)
    assert entry.fps == pytest.approx(11 / (121 / 30), rel=1e-3)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ("161x121", ("-pix_fmt", "yuv444p")), ("160x120", ("-pix_fmt", "yuv420p10le")), ("66x50", ()),
        ("160x120", ("-pix_fmt", "yuv422p10le")), ("160x120", ("-color_range", "pc", "-pix_fmt", "yuvj420p")),
    ],
)  # fmt: skip
def test_odd_sizes_high_bit_depth_and_full_range(
    make_video: MakeVideo, tmp_path: Path, size: str, options: tuple[str, ...]
) -> None:
    source = make_video(tmp_path / "a.mkv", *X264, *options, "-crf", "10", source="testsrc", size=size, frames=5)
    shards, entry = only(extract(tmp_path)[0])
    assert (entry.source_width, entry.source_height) == tuple(map(int, size.split("x")))
    with av.open(str(source)) as container:
        frames = [f.reformat(64, 48, "rgb24", interpolation="AREA").to_ndarray() for f in container.decode(video=0)]
    error = np.abs(pictures(shards, entry).astype(int) - np.stack(frames)).mean()
    assert error < 12, "colors and geometry are preserved"


# Dispositions of a thumbnail, a short and a long stream, and which stream is expected.
@pytest.mark.parametrize(
    ("suffix", "dispositions", "expected"),
    [
        ("mkv", ("default", "0", "0"), "long"),
        ("mkv", ("default", "default", "default"), "long"),
        ("mkv", ("default", "default", "0"), "short"),
        ("mp4", ("0", "default", "default"), "long"),
    ],
)
def test_default_stream_comes_first_then_the_one_with_most_frames(
    make_video: MakeVideo,
    ffmpeg_run: Callable[..., None],
    tmp_path: Path,
    suffix: str,
    dispositions: tuple[str, ...],
    expected: str,
) -> None:
    parts = [
        make_video(tmp_path / "parts" / "thumbnail.png", "-update", "1", size="640x480", frames=1),
        make_video(tmp_path / "parts" / "short.mp4", *X264, size="96x64", frames=5),
        make_video(tmp_path / "parts" / "long.mp4", *X264, size="64x48", frames=9),
    ]
    (tmp_path / "v").mkdir()
    inputs = [argument for part in parts for argument in ("-i", part)]
    maps = [argument for number in range(3) for argument in ("-map", number)]
    marks = [argument for n, mark in enumerate(dispositions) for argument in (f"-disposition:v:{n}", mark)]
    ffmpeg_run(*inputs, *maps, "-c", "copy", *marks, tmp_path / "v" / f"a.{suffix}")
    out, failures = extract(tmp_path / "v")
    assert not failures
    _, entry = only(out)
    sizes = {"short": (96, 64, 5), "long": (64, 48, 9)}
    assert (entry.source_width, entry.source_height, entry.frame_count) == sizes[expected]
    (note,) = read_rows(out / "notes.csv")
    assert note["id"] == "v0"
    assert f"{entry.source_width}x{entry.source_height}, {entry.frame_count} frames" in note["note"]
    assert "640x480, 1 frame" in note["note"]
    code, output = call("verify", out)
    assert code == 0, output


def test_cover_pictures_are_no_videos(make_video: MakeVideo, ffmpeg_run: Callable[..., None], tmp_path: Path) -> None:
    video = make_video(tmp_path / "parts" / "video.mp4", *X264, size="64x48", frames=9)
    cover = make_video(tmp_path / "parts" / "cover.png", "-update", "1", size="640x480", frames=1)
    (tmp_path / "v").mkdir()
    marked = ("-c", "copy", "-disposition:v:0", "attached_pic")
    ffmpeg_run("-i", cover, "-i", video, "-map", 0, "-map", 1, *marked, tmp_path / "v" / "a.mp4")
    ffmpeg_run("-i", cover, "-map", 0, *marked, "-f", "mp4", tmp_path / "v" / "b.m4v")
    out, failures = extract(tmp_path / "v")
    _, entry = only(out)
    assert (entry.source_width, entry.frame_count) == (64, 9)
    assert not (out / "notes.csv").exists(), "there was no choice"
    assert "no video stream" in failures["b.m4v"]
    # Neither is a single picture if there is a choice, but alone it is a video of one frame.
    ffmpeg_run("-i", cover, "-c", "copy", tmp_path / "picture.mkv")
    assert probe(tmp_path / "picture.mkv").width == 640


@pytest.mark.parametrize("transcode", ["always", "auto", "never"])
def test_resolution_change_within_a_stream(make_video: MakeVideo, tmp_path: Path, transcode: str) -> None:
    parts = [
        make_video(tmp_path / "parts" / f"{i}.h264", *PLAIN, "-vf", f"scale={size}", frames=12)
        for i, size in enumerate(["160:120", "96:64"])
    ]
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.h264").write_bytes(b"".join(p.read_bytes() for p in parts))
    out, failures = extract(tmp_path / "v", "--transcode", transcode)
    if transcode == "never":
        assert "picture size changes" in failures["a.h264"]
        return
    shards, entry = only(out)
    assert entry.frame_count == 24
    assert own_vectors(out) == {"v0": False}
    first, second = pictures(shards, entry).reshape(2, 12, 48, 64, 3).astype(int)
    assert np.abs(first - second).mean() < 25, "both parts are scaled to the same size"


def test_unusual_file_names(make_video: MakeVideo, tmp_path: Path) -> None:
    plain = make_video(tmp_path / "plain.mp4", *X264, frames=3)
    names = ["a b.mp4", "-i.mp4", "qu'o\"te.mp4", "line\nbreak.mp4", "%d.mp4", "file:x.mp4", "ünï.mp4", "[x],;.mp4"]
    folder = tmp_path / "v"
    folder.mkdir()
    for name in [*names, os.fsdecode(b"\xff\xfe.mp4")]:
        (folder / name).write_bytes(plain.read_bytes())
    for transcode in ("always", "never"):
        out, failures = extract(folder, "--transcode", transcode)
        assert not failures
        assert [e.frame_count for e in ShardSet(out).videos] == [3] * 9
        shutil.rmtree(out)


@pytest.mark.parametrize("transcode", ["always", "never"])
def test_metadata_need_not_be_utf_8(make_video: MakeVideo, tmp_path: Path, transcode: str) -> None:
    for suffix in ("avi", "mp4", "mkv"):
        metadata = ("-metadata", "title=Vor\udcfc", "-metadata:s:v:0", "title=Vor\udcfc")
        make_video(tmp_path / f"a.{suffix}", "-c:v", "mpeg4", *metadata, frames=13)
    out, failures = extract(tmp_path, "--transcode", transcode)
    assert not failures
    assert [entry.frame_count for entry in ShardSet(out).videos] == [13, 13, 13]


def test_packed_b_frames_in_avi(real_videos: Path, tmp_path: Path) -> None:
    name = "hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi"
    (tmp_path / "a.avi").symlink_to(real_videos / "formats" / "torchvision" / name)
    _, entry = only(extract(tmp_path)[0])
    with open_input(tmp_path / "a.avi") as container:
        decoded = sum(1 for _ in container.decode(video=0))
    assert entry.frame_count == decoded


def test_segments_equal_slices_of_the_whole_video(make_video: MakeVideo, tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        make_video(tmp_path / name / "a.mp4", *X264, source="mandelbrot", frames=80)
    shards, whole = only(extract(tmp_path / "whole", "--gop", "10")[0])
    pieces = ShardSet(extract(tmp_path / "cut", "--gop", "10", "--segment-seconds", "0.8")[0])
    # 0.8 s are 24 frames; the next I-frames are at frames 30, 50 and 80, which is the end.
    assert [(v.video_id, v.row, v.frame_count) for v in pieces.videos] == [
        ("v0#0000", 0, 30), ("v0#0001", 0, 20), ("v0#0002", 0, 30),
    ]  # fmt: skip
    start = 0
    for piece in pieces.videos:
        stop = start + piece.frame_count
        assert piece.fps == pytest.approx(30, rel=1e-3)
        assert piece.keyframe_indices == tuple(range(0, piece.frame_count, 10))
        ours, theirs = pieces.motion(piece, 0, piece.frame_count), shards.motion(whole, start, stop)
        np.testing.assert_array_equal(ours.grid_quarter_px, theirs.grid_quarter_px)
        expected = [bytes(j) for j in shards.frame_jpegs(whole, range(start, stop))]
        assert [bytes(j) for j in pieces.frame_jpegs(piece, range(piece.frame_count))] == expected
        first = whole.keyframe_indices.index(start)
        assert bytes(pieces.keyframe_jpeg(piece, 0)) == bytes(shards.keyframe_jpeg(whole, first))
        start = stop
    assert start == whole.frame_count
    code, output = call("verify", tmp_path / "cut" / "out")
    assert code == 0, output
