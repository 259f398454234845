"""The library of the extractor: motion and frames of single files, and shards as a table."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import cmd_extract
from cmd_extract.api.frames import VideoFrames, iterate_videos
from cmd_extract.config import ExtractConfig
from cmd_extract.decode.grid import rasterize
from cmd_extract.decode.vectors import VECTOR_DTYPE, FrameVectors
from tests.integration.cmd_extract.extraction import MakeVideo, call


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    """70 frames of H.264 with B-frames, more than a batch."""
    return make_video(tmp_path_factory.mktemp("library") / "a.mp4", "-c:v", "libx264", "-g", "12", frames=70)


@pytest.fixture(scope="module")
def shards(few_shards: Path) -> cmd_extract.Shards:
    return cmd_extract.open_shards(few_shards)


def files_of(shards: cmd_extract.Shards) -> list[Path]:
    folder = shards.folder.parent / "videos"
    records = cmd_extract.read_manifest(folder / "manifest.csv")
    return [folder / record.path for record in records]


def test_motion_of_a_file_is_what_a_shard_stores(shards: cmd_extract.Shards) -> None:
    reader = cmd_extract.read_motion(str(files_of(shards)[3]))
    motion, stored = reader.read(), shards.motion(3)
    assert np.array_equal(motion.grid_quarter_px, stored.grid_quarter_px)
    assert np.array_equal(motion.valid, stored.valid)
    assert np.array_equal(motion.frame_types, shards.frame_types(3))
    assert np.array_equal(motion.pts_seconds, shards.pts_seconds(3))
    assert motion.info.grid_shape == stored.valid.shape[1:]
    assert len(motion) == shards.videos[3].frame_count


def test_motion_of_the_source_stream_is_what_a_shard_stores(tmp_path: Path, make_video: MakeVideo) -> None:
    video = make_video(tmp_path / "videos" / "a.avi", "-c:v", "mpeg4", "-g", "12", "-bf", "2", size="340x256")
    (tmp_path / "manifest.csv").write_text("id,path\na,videos/a.avi\n")
    arguments = (tmp_path / "manifest.csv", tmp_path / "shards", "--transcode", "never", "--workers", 1)
    code, output = call("run", *arguments)
    assert code == 0, output
    shards = cmd_extract.open_shards(tmp_path / "shards")
    motion = cmd_extract.read_motion(video, stream="source").read()
    assert np.array_equal(motion.grid_quarter_px, shards.motion("a").grid_quarter_px)
    assert np.array_equal(motion.valid, shards.motion("a").valid)
    assert np.array_equal(motion.frame_types, shards.frame_types("a"))
    assert np.array_equal(motion.pts_seconds, shards.pts_seconds("a"))
    assert b"B" in motion.frame_types


def test_exact_vectors_are_those_of_the_bitstream(video: Path) -> None:
    frames = list(cmd_extract.read_motion(video, stream="source", vectors=True))
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.options = "NONE", {"flags2": "+export_mvs"}
        decoded, time_base = list(container.decode(stream)), stream.time_base
    assert time_base is not None
    assert [frame.index for frame in frames] == list(range(len(decoded))) == list(range(70))
    assert {frame.frame_type for frame in frames} == {"I", "P", "B"}
    for frame, expected in zip(frames, decoded, strict=True):
        assert frame.time_seconds == pytest.approx(float((expected.pts - decoded[0].pts) * time_base))
        side = expected.side_data.get("MOTION_VECTORS")
        records = np.frombuffer(bytes(side), VECTOR_DTYPE) if side is not None else np.empty(0, VECTOR_DTYPE)
        assert frame.vectors is not None
        assert np.array_equal(frame.vectors, records)
        grid = rasterize([FrameVectors(frame_type=frame.frame_type, vectors=records)], 160, 120)
        assert np.array_equal(frame.grid_quarter_px, grid.grid_quarter_px[0])
        assert np.array_equal(frame.valid, grid.valid[0])


def test_iterations_are_the_same_contained_or_not(video: Path) -> None:
    readers = [cmd_extract.read_motion(video, contained=contained) for contained in (True, False)]
    first, again, inside = (list(reader) for reader in (readers[0], *readers))
    assert len(list(readers[1])) == 70
    assert len(first) == 70
    for others in (again, inside):
        for frame, other in zip(first, others, strict=True):
            assert (frame.index, frame.frame_type, frame.time_seconds) == (
                other.index,
                other.frame_type,
                other.time_seconds,
            )
            assert np.array_equal(frame.grid_quarter_px, other.grid_quarter_px)
            assert frame.vectors is None


def test_constant_frame_rates_have_their_own_times(video: Path) -> None:
    motion = cmd_extract.read_motion(video, config=ExtractConfig(fps="15")).read()
    assert len(motion) == 35
    assert np.allclose(motion.pts_seconds, np.arange(35) / 15)


def test_memory_does_not_grow_with_the_video(tmp_path: Path, make_video: MakeVideo) -> None:
    def peak(frames: int) -> int:
        video = make_video(tmp_path / f"{frames}.mp4", "-c:v", "mpeg4", "-g", "12", frames=frames)
        tracemalloc.start()
        assert sum(1 for _ in cmd_extract.read_motion(video, stream="source", contained=False)) == frames
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(40)  # modules are loaded
    assert peak(1000) < 1.5 * peak(100)


def test_errors_name_the_file(tmp_path: Path, make_video: MakeVideo) -> None:
    with pytest.raises(cmd_extract.VideoError, match=r"nothing\.mp4: open: ") as caught:
        cmd_extract.read_motion(tmp_path / "nothing.mp4")
    assert (caught.value.stage, caught.value.path) == ("open", str(tmp_path / "nothing.mp4"))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    old = make_video(tmp_path / "old.mpg", "-c:v", "mpeg2video", frames=5)
    with pytest.raises(cmd_extract.VideoError, match="no motion vectors available for codec mpeg2video"):
        cmd_extract.read_motion(old, stream="source")
    assert len(cmd_extract.read_motion(old).read()) == 5
    with pytest.raises(ValueError, match="stream: must be one of canonical, source, got 'own'"):
        cmd_extract.read_motion(old, stream="own")  # type: ignore[arg-type] # the case under test


def interpreters() -> set[int]:
    """Process ids of the children that decode for this process."""
    listed = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    commands = {int(pid): Path(f"/proc/{pid}/cmdline") for line in listed for pid in line.split()}
    return {pid for pid, command in commands.items() if command.exists() and b"run_target" in command.read_bytes()}


def test_the_death_of_the_decoding_process_is_an_error(video: Path) -> None:
    frames = iter(cmd_extract.read_motion(video, stream="source"))
    next(frames)
    (child,) = interpreters()
    os.kill(child, signal.SIGKILL)
    with pytest.raises(cmd_extract.VideoError, match=r"a\.mp4: crash: .*killed by SIGKILL"):
        list(frames)
    assert interpreters() == set()


def test_time_limit_applies_to_single_files(video: Path) -> None:
    with pytest.raises(cmd_extract.VideoError, match=r"not finished after 0\.001 s"):
        cmd_extract.read_motion(video, limits=cmd_extract.Limits(timeout_seconds=0.001))


def test_frames_of_files_have_the_pixels_of_shards(shards: cmd_extract.Shards, tmp_path: Path) -> None:
    files = files_of(shards)[:3]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    paths = [files[0], broken, *files[1:]]
    found = []
    for item in iterate_videos(paths, ExtractConfig(), workers=2):
        found.append(item if isinstance(item, cmd_extract.VideoError) else item.read([0, 5, 5, 2]))
        if isinstance(item, VideoFrames):
            with pytest.raises(IndexError, match="which has 24 frames"):
                item.read([24])
    assert isinstance(found[1], cmd_extract.VideoError)
    assert found[1].path == str(broken)
    for number, pixels in zip((0, 1, 2), (found[0], *found[2:]), strict=True):
        clip = shards.clip(number)
        assert np.array_equal(pixels, clip[[0, 5, 5, 2]])


def test_frames_are_decoded_in_this_process_on_request(shards: cmd_extract.Shards) -> None:
    for frames in iterate_videos(files_of(shards)[:2], ExtractConfig(), contained=False):
        assert isinstance(frames, VideoFrames)
        assert frames.frame_count == 24
        assert interpreters() == set()


BESIDE_A_THREAD = """
import os, sys, threading, time
import cmd_extract

class Waits:
    def __init__(self):
        self.process = os.getpid()

    def __del__(self):  # as PyAV's, for threads that a fork does not copy
        if os.getpid() != self.process:
            time.sleep(600)

def hold():
    local.kept = Waits()
    held.set()
    end.wait()

local, held, end = threading.local(), threading.Event(), threading.Event()
threading.Thread(target=hold).start()
held.wait()
print(len(list(cmd_extract.read_motion(sys.argv[1], contained=False))))
end.set()
"""


def test_files_are_read_beside_threads_that_must_not_be_forked(video: Path) -> None:
    command = [sys.executable, "-c", BESIDE_A_THREAD, video]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "70\n"


def test_an_abandoned_iteration_leaves_nothing(
    shards: cmd_extract.Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    videos = iterate_videos(files_of(shards), ExtractConfig(), workers=2)
    next(videos)
    videos.close()  # type: ignore[attr-defined] # a generator
    reader = cmd_extract.read_motion(files_of(shards)[0])
    assert len(interpreters()) == 1
    del reader
    assert interpreters() == set()
    assert list(tmp_path.iterdir()) == []


def test_a_script_without_main_guard_reads_motion(video: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import cmd_extract\nprint(sum(1 for _ in cmd_extract.read_motion({str(video)!r})))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("70\n", "")


def test_shards_are_a_table_of_videos(shards: cmd_extract.Shards) -> None:
    table = shards.table()
    assert len(shards) == len(table["video_id"]) == 24
    assert {"label", "group", "split", "frame_count", "fps"} <= table.keys()
    name = str(table["video_id"][5])
    assert shards.video(name) == shards.video(5) == shards.videos[5]
    assert repr(shards) == f"<24 videos in {shards.folder}>"
    with pytest.raises(KeyError, match="no video 'nothing'"):
        shards.video("nothing")


def test_clips_and_keyframes_are_decoded(shards: cmd_extract.Shards) -> None:
    entry, stored = shards.videos[7], cmd_extract.ShardSet(shards.folder)
    clip = shards.clip(7, 2, 4, stride=3)
    assert clip.shape == (4, 128, 170, 3)
    jpeg = bytes(stored.frame_jpegs(entry, [5])[0])
    # libjpeg's default and accurate transforms differ by a few levels.
    assert np.abs(clip[1].astype(int) - np.asarray(Image.open(io.BytesIO(jpeg)), int)).max() <= 4
    keyframe = shards.keyframe(entry, 1)
    assert keyframe.shape == (256, 340, 3)
    assert not np.array_equal(keyframe, shards.keyframe(entry, 0))
    copy = pickle.loads(pickle.dumps(shards))
    assert np.array_equal(copy.keyframe(entry.video_id, 1), keyframe)
    assert len(shards.motion(7, 3, 9)) == 6
    with pytest.raises(IndexError):
        shards.clip(7, 20, 5)
    with pytest.raises(cmd_extract.ShardError, match=r"no index\.json found"):
        cmd_extract.open_shards(shards.folder / "nothing")
