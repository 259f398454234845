"""Extraction end to end: shard contents, failures, reproducible bytes, an independent check of the grid."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.source import probe
from cmd_extract.decode.transcode import transcode
from cmd_extract.decode.video import extract_video
from cmd_extract.shard.reader import ShardSet
from tests.integration.cmd_extract.drawn_vectors import draw_vectors
from tests.integration.cmd_extract.extraction import MakeVideo, all_files, call, read_rows


def write_manifest(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "path", "label", "split1"])
        writer.writerows([video_id, file, "some", "train"] for video_id, file in rows)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "b frames.mp4", "-c:v", "libx264", "-bf", "2", frames=40)
    make_video(folder / "-x.avi", "-c:v", "mpeg4", "-bf", "0", source="mandelbrot", frames=25, size="171x121")
    make_video(folder / "slow.mkv", "-c:v", "libx264", "-r", "7.5", source="testsrc", frames=9)
    make_video(folder / "one.mp4", "-c:v", "libx264", frames=1)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video")
    rows = [(p.name, p.name) for p in sorted(folder.iterdir())] + [("gone", "gone.mp4")]
    write_manifest(folder / "manifest.csv", rows)
    return folder


@pytest.fixture(scope="module")
def extracted(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "out"
    code, output = call("run", videos / "manifest.csv", out, "--workers", 2, "--videos-per-shard", 2)
    assert code == 3, output
    return out


def test_every_row_is_extracted_or_listed_as_failure(videos: Path, extracted: Path) -> None:
    shards = ShardSet(extracted)
    counts = {entry.video_id: entry.frame_count for entry in shards.videos}
    assert counts == {"-x.avi": 25, "b frames.mp4": 40, "one.mp4": 1, "slow.mkv": 9}
    failures = read_rows(extracted / "failures.csv")
    assert {f["path"]: f["stage"] for f in failures} == {"empty.mp4": "probe", "text.mp4": "probe", "gone.mp4": "open"}
    assert all(f["reason"] for f in failures)
    rows = [entry.row for entry in shards.videos] + [int(f["row"]) for f in failures]
    assert sorted(rows) == list(range(7))
    assert not [p for p in extracted.iterdir() if p.name.startswith(".")]


def test_frames_keyframes_and_motion_are_aligned(videos: Path, extracted: Path) -> None:
    shards = ShardSet(extracted)
    entry = next(e for e in shards.videos if e.video_id == "b frames.mp4")
    assert entry.keyframe_indices == (0, 12, 24, 36)
    assert entry.fps == pytest.approx(30, rel=1e-3)
    frames = [simplejpeg.decode_jpeg(j) for j in shards.frame_jpegs(entry, range(entry.frame_count))]
    assert {f.shape for f in frames} == {(128, 170, 3)}
    with av.open(str(videos / "b frames.mp4")) as container:
        source = [f.to_ndarray(format="rgb24", width=170, height=128) for f in container.decode(video=0)]
    for i in (0, 13, 39):
        errors = [np.abs(frames[i].astype(int) - s.astype(int)).mean() for s in source]
        assert int(np.argmin(errors)) == i, "frame n of the shard must be frame n of the source"
    for number, index in enumerate(entry.keyframe_indices):
        keyframe = simplejpeg.decode_jpeg(shards.keyframe_jpeg(entry, number))
        assert keyframe.shape == (256, 340, 3)
        small = keyframe.reshape(128, 2, 170, 2, 3).mean(axis=(1, 3))
        errors = [np.abs(f.astype(int) - small).mean() for f in frames]
        assert int(np.argmin(errors)) == index
    motion = shards.motion(entry, 0, entry.frame_count)
    assert not motion.valid[list(entry.keyframe_indices)].any(), "I-frames have no vectors"
    assert motion.valid[1].mean() > 0.5


def test_output_does_not_depend_on_workers_or_interruptions(videos: Path, extracted: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert call("run", videos / "manifest.csv", out, "--workers", 1, "--videos-per-shard", 2)[0] == 3
    names = sorted(p.name for p in extracted.glob("shard-*.h5"))
    assert len(names) == 4
    (table,) = extracted.glob("index-*.h5")
    compared = [*names, table.name, "index.json", "failures.csv"]
    assert all((out / n).read_bytes() == (extracted / n).read_bytes() for n in compared)
    untouched = (out / names[0]).stat().st_mtime_ns
    (out / names[1]).unlink()
    (out / "index.json").unlink()
    code, output = call("run", videos / "manifest.csv", out, "--workers", 2, "--videos-per-shard", 2)
    assert code == 3, output
    assert all((out / n).read_bytes() == (extracted / n).read_bytes() for n in compared)
    assert (out / names[0]).stat().st_mtime_ns == untouched, "finished shards are left alone"


def test_different_configuration_is_rejected(videos: Path, extracted: Path) -> None:
    before = all_files(extracted)
    code, output = call("run", videos / "manifest.csv", extracted, "--gop", 10, "--videos-per-shard", 2)
    assert code == 1
    assert "gop: 12 is now 10" in output
    assert all_files(extracted) == before


@pytest.mark.parametrize("arguments", [("--size", "big"), ("--gop", "0"), ("--cell", "4"), ("--workers", "0")])
def test_usage_errors_exit_with_2(videos: Path, tmp_path: Path, arguments: tuple[str, str]) -> None:
    code, _ = call("run", videos / "manifest.csv", tmp_path / "out", *arguments)
    assert code == 2
    assert not (tmp_path / "out").exists()


def test_constant_frame_rate_h264_and_coarse_cells(videos: Path, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.csv", [("v", str(videos / "b frames.mp4"))])
    options = ("--fps", "15", "--codec", "h264", "--cell", "16", "--size", "320x240")
    code, output = call("run", manifest, tmp_path / "out", *options)
    assert code == 0, output
    shards = ShardSet(tmp_path / "out")
    (entry,) = shards.videos
    assert entry.frame_count == 20
    assert entry.keyframe_indices == (0, 12)
    motion = shards.motion(entry, 0, 20)
    assert motion.valid.shape == (20, 15, 20)
    assert motion.valid.any()


@pytest.mark.parametrize("codec", ["mpeg4", "h264"])
def test_grid_equals_an_independent_computation(
    make_video: MakeVideo, ffmpeg: FfmpegBinary, tmp_path: Path, codec: str
) -> None:
    source = make_video(tmp_path / "in.mp4", "-c:v", "libx264", source="mandelbrot", frames=30)
    check_grid(source, ExtractConfig(width=180, height=132, codec=codec, frame_short_side=64), ffmpeg, tmp_path)


def check_grid(source: Path, config: ExtractConfig, ffmpeg: FfmpegBinary, folder: Path) -> None:
    for name in ("extract", "canonical"):
        (folder / name).mkdir()
    video = extract_video(source, config, folder / "extract", ffmpeg)
    files = transcode(source, probe(source), config, folder / "canonical", ffmpeg)
    grid, valid, _ = draw_vectors(files.canonical)
    stored = np.frombuffer(video.grid.read_bytes(), np.int16).reshape(grid.shape)
    np.testing.assert_array_equal(stored, grid)
    np.testing.assert_array_equal(np.frombuffer(video.valid.read_bytes(), bool).reshape(valid.shape), valid)
    assert np.abs(stored).max() > 0


def test_real_videos(real_videos: Path, ffmpeg: FfmpegBinary, tmp_path: Path) -> None:
    names = ["torchvision/v_SoccerJuggling_g23_c01.avi", "torchvision/SOX5yA1l24A.mp4", "torchcodec/h265_video.mp4"]
    for number, name in enumerate(names):
        (tmp_path / str(number)).mkdir()
        check_grid(real_videos / "formats" / name, ExtractConfig(), ffmpeg, tmp_path / str(number))
    broken = ["empty.mp4", "fight_truncated.mp4", "kinetics_audio_only.mp4", "ucf_bitflips.avi", "ucf_truncated.avi"]
    files = [real_videos / "formats" / "derived" / name for name in broken]
    manifest = write_manifest(tmp_path / "m.csv", [(f.name, str(f)) for f in files])
    code, output = call("run", manifest, tmp_path / "out")
    assert code == 3, output
    assert {e.video_id for e in ShardSet(tmp_path / "out").videos} == {"ucf_bitflips.avi", "ucf_truncated.avi"}
    assert json.loads((tmp_path / "out" / "index.json").read_text())["totals"]["failures"] == 3


def test_grids_of_some_gestures(real_videos: Path, ffmpeg: FfmpegBinary, tmp_path: Path) -> None:
    files = sorted((real_videos / "gestures").glob("*/*"))
    assert len(files) == 237
    for number, file in enumerate(files[::60]):  # all 237 were compared once
        (tmp_path / str(number)).mkdir()
        check_grid(file, ExtractConfig(), ffmpeg, tmp_path / str(number))


def test_disguised_playlist_cannot_open_other_files(videos: Path, tmp_path: Path) -> None:
    shutil.copy(videos / "b frames.mp4", tmp_path / "other.mp4")
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    (tmp_path / "hls.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nother.mp4\n#EXT-X-ENDLIST\n")
    manifest = write_manifest(tmp_path / "m.csv", [("concat", "concat.mp4"), ("hls", "hls.mp4")])
    code, output = call("run", manifest, tmp_path / "out")
    assert code == 3, output
    assert json.loads((tmp_path / "out" / "index.json").read_text())["totals"]["videos"] == 0


def test_help_imports_no_heavy_modules() -> None:
    program = (
        "import sys; from cmd_extract.cli.main import main; main(['--help'], standalone_mode=False);"
        "heavy = {'torch', 'av', 'h5py', 'joblib', 'numpy'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
