"""Time stamps equal those of the source, whichever way a video is extracted.

The expected times come from the stamps that the tests write, not from the extractor.
"""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.own_stream import CODECS_WITH_VECTORS
from cmd_extract.decode.source import probe
from cmd_extract.decode.video import ExtractedVideo, cut_into_segments, extract_video
from cmd_extract.schema import Damage
from tests.integration.cmd_extract.extraction import PLAIN, X264, MakeVideo, extract, only
from tests.integration.cmd_extract.stamped_videos import FRAMES, SIZE, pack_b_frames, restamp, restamp_flv

WAYS = [("always", True), ("always", False), ("auto", True), ("never", True), ("never", False)]
MPEG4 = ("-c:v", "mpeg4", "-bf", "0", "-g", "12")
# Ticks of 1/90000 s.
_JITTER = random.Random(0)
RISING = {
    "on the grid": [3000 * n for n in range(FRAMES)],
    "off the grid": [3003 * n for n in range(FRAMES)],
    "24 then 29.97": [3750 * min(n, 12) + 3003 * max(n - 12, 0) for n in range(FRAMES)],
    "slow motion": [3000 * min(n, 8) + 375 * max(n - 8, 0) for n in range(FRAMES)],
    "jitter": [3000 * n + 400 + _JITTER.randint(-360, 360) for n in range(FRAMES)],
    "pairs": [6000 * (n // 2) + 180 * (n % 2) for n in range(FRAMES)],
    "gap": [3000 * n + 6 * 90_000 * (n >= 12) for n in range(FRAMES)],
}
MILLISECONDS = {
    "duplicates": [67 * (n // 2) for n in range(FRAMES)],
    "one duplicate": [33 * (n - (n == 7)) for n in range(FRAMES)],
    "backward": [33 * n - 50 * (n == 9) for n in range(FRAMES)],
    "restart": [33 * (n % 12) for n in range(FRAMES)],
    "jump": [33 * n + 60_000 * (n >= 12) for n in range(FRAMES)],
}


@pytest.fixture(scope="module")
def sources(make_video: MakeVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    common = {"source": "mandelbrot", "size": "64x48", "frames": FRAMES}
    for suffix in ("mp4", "flv", "ts"):
        make_video(folder / f"plain.{suffix}", *PLAIN, **common)
    make_video(folder / "b.mp4", *X264, "-bf", "2", "-g", "6", **common)
    make_video(folder / "b.avi", *X264, "-bf", "2", **common)
    make_video(folder / "single b.avi", "-c:v", "mpeg4", "-bf", "1", "-flags:v", "+bitexact", **common | {"frames": 25})
    make_video(folder / "raw.h264", *X264, **common)
    return folder


@pytest.fixture
def extract_five_ways(ffmpeg: FfmpegBinary, tmp_path: Path) -> Callable[[Path], ExtractedVideo]:
    """Extract a video in all ways; check that they give the same times and damage, and return the first result."""

    def call(source: Path) -> ExtractedVideo:
        results = []
        for number, (transcode, frames) in enumerate(WAYS):
            folder = tmp_path / f"way {number}"
            folder.mkdir()
            size = {"width": SIZE[0], "height": SIZE[1], "frame_short_side": 16}
            config = ExtractConfig(**size, transcode=transcode, store_frames=frames)
            if transcode == "never" and probe(source).codec not in CODECS_WITH_VECTORS:
                continue
            results.append(extract_video(source, config, folder, ffmpeg))
        for result in results[1:]:
            np.testing.assert_array_equal(result.pts_seconds, results[0].pts_seconds)
            assert (result.damage, result.note) == (results[0].damage, results[0].note)
        return results[0]

    return call


def run_ffmpeg(ffmpeg: FfmpegBinary, *arguments: object) -> None:
    subprocess.run([ffmpeg.path, "-nostdin", "-loglevel", "error", "-y", *map(str, arguments)], check=True)


def check(video: ExtractedVideo, expected: Sequence[float], damage: Damage = Damage.NONE, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(video.pts_seconds, np.array(expected) - expected[0], atol=atol)
    assert (np.diff(video.pts_seconds) > 0).all()
    assert video.damage == damage


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("name", RISING)
def test_rising_stamps_are_kept(
    sources: Path, tmp_path: Path, extract_five_ways: Callable[[Path], ExtractedVideo], name: str, suffix: str
) -> None:
    stamps = RISING[name]
    video = extract_five_ways(restamp(sources / "plain.mp4", tmp_path / f"a.{suffix}", stamps))
    # Matroska rounds to milliseconds.
    check(video, np.array(stamps) / 90_000, atol=1e-3 if suffix == "mkv" else 1e-9)


@pytest.mark.parametrize("name", MILLISECONDS)
def test_stamps_that_do_not_rise_are_moved(
    sources: Path, tmp_path: Path, extract_five_ways: Callable[[Path], ExtractedVideo], name: str
) -> None:
    stamps = MILLISECONDS[name]
    video = extract_five_ways(restamp_flv(sources / "plain.flv", tmp_path / "a.flv", stamps))
    if name == "restart":
        check(video, [0.033 * n for n in range(FRAMES)], Damage.TIMES_REPAIRED)
        assert video.note == "jumps of the clock closed: 1"
        return
    times, moved = [stamps[0]], 0
    for stamp in stamps[1:]:
        moved += stamp <= times[-1]
        times.append(max(stamp, times[-1] + 1))
    check(video, np.array(times) / 1000, Damage.TIMES_REPAIRED if moved else Damage.NONE)
    assert video.note == (f"time stamps moved to keep them increasing: {moved}" if moved else "")


@pytest.mark.parametrize("second", [0, 60, 12 * 3600])
def test_concatenated_transport_streams(
    sources: Path, tmp_path: Path, extract_five_ways: Callable[[Path], ExtractedVideo], second: int
) -> None:
    parts = [
        restamp(sources / "plain.mp4", tmp_path / f"{start}.ts", [3000 * n + start * 90_000 for n in range(FRAMES)])
        for start in (20 * 3600, 20 * 3600 + second)
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    video = extract_five_ways(joined)
    # FFmpeg also finds that packets are missing between the parts.
    check(video, [n / 30 for n in range(2 * FRAMES)], Damage.TIMES_REPAIRED | Damage.DECODE_ERRORS)
    assert video.note == "jumps of the clock closed: 1"


def test_clock_that_wraps_around(
    sources: Path, tmp_path: Path, extract_five_ways: Callable[[Path], ExtractedVideo]
) -> None:
    stamps = [(1 << 33) - 12 * 3000 + 3000 * n for n in range(FRAMES)]
    check(extract_five_ways(restamp(sources / "plain.mp4", tmp_path / "a.ts", stamps)), [n / 30 for n in range(FRAMES)])


@pytest.mark.parametrize("name", ["b.mp4", "b.avi", "raw.h264", "packed.avi"])
def test_reordered_frames(
    sources: Path, tmp_path: Path, extract_five_ways: Callable[[Path], ExtractedVideo], name: str
) -> None:
    source = sources / name
    frames = FRAMES
    if name == "packed.avi":
        source, frames = pack_b_frames(sources / "single b.avi", tmp_path / name), 25
        with av.open(str(source)) as container:
            assert sum(1 for _ in container.decode(video=0)) == frames
    check(extract_five_ways(source), [n / 30 for n in range(frames)])


# The first hides frames with an edit list, the others start before and after 0.
@pytest.mark.parametrize("options", [("-ss", "0.45"), ("-itsoffset", "-0.3"), ("-itsoffset", "0.3")])
def test_edit_lists_and_other_starts(
    sources: Path,
    tmp_path: Path,
    ffmpeg: FfmpegBinary,
    extract_five_ways: Callable[[Path], ExtractedVideo],
    options: tuple[str, ...],
) -> None:
    target = tmp_path / "a.mp4"
    run_ffmpeg(ffmpeg, *options, "-i", sources / "b.mp4", "-c", "copy", "-avoid_negative_ts", "disabled", target)
    with av.open(str(target)) as container:
        shown = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    assert len(shown) >= FRAMES // 2 - 2
    check(extract_five_ways(target), shown)


def test_negative_stamps_that_the_container_cannot_hold(
    sources: Path, tmp_path: Path, ffmpeg: FfmpegBinary, extract_five_ways: Callable[[Path], ExtractedVideo]
) -> None:
    target = tmp_path / "a.mkv"
    options = ("-itsoffset", "-0.4", "-i", sources / "b.mp4", "-c", "copy", "-avoid_negative_ts", "disabled")
    run_ffmpeg(ffmpeg, *options, target)
    video = extract_five_ways(target)
    assert video.frame_count == FRAMES
    assert (np.diff(video.pts_seconds) > 0.03).all()


@pytest.mark.parametrize("codec", [MPEG4, PLAIN])
def test_dropped_frames_of_avi(
    make_video: MakeVideo,
    tmp_path: Path,
    extract_five_ways: Callable[[Path], ExtractedVideo],
    codec: tuple[str, ...],
) -> None:
    select = ("-vf", "select='not(between(mod(n,10),5,7))'", "-fps_mode", "passthrough")
    source = make_video(tmp_path / "a.avi", *select, *codec, source="mandelbrot", frames=20, size="64x48")
    with av.open(str(source)) as container:
        assert container.streams.video[0].frames > 22, "the container counts the empty chunks"
    kept = [n for n in range(40) if not 5 <= n % 10 <= 7][:20]
    check(extract_five_ways(source), [n / 30 for n in kept])


def test_dropped_frames_of_avi_with_b_frames(
    make_video: MakeVideo, tmp_path: Path, extract_five_ways: Callable[[Path], ExtractedVideo]
) -> None:
    # The last frames, which the decoder delays, have neither time stamps nor a usable duration.
    select = ("-vf", "select='not(mod(n,4))'", "-fps_mode", "passthrough")
    codec = ("-c:v", "libx264", "-bf", "3", "-b_strategy", "0", "-g", "12")
    source = make_video(tmp_path / "b.avi", *select, *codec, source="mandelbrot", frames=20, size="64x48")
    check(extract_five_ways(source), [4 * n / 30 for n in range(20)])


def test_dropped_frames_at_the_end_of_avi_are_not_missing(
    make_video: MakeVideo, tmp_path: Path, extract_five_ways: Callable[[Path], ExtractedVideo]
) -> None:
    source = make_video(tmp_path / "a.avi", *PLAIN, source="mandelbrot", frames=20, size="64x48")
    data = bytearray(source.read_bytes())
    # 20 empty chunks at the end, in the data, in the index and in the counts of both headers.
    empty = b"00dc" + bytes(4)
    index = data.index(b"idx1")
    entries = b"".join(
        b"00dc" + bytes(4) + (index - data.index(b"movi")).to_bytes(4, "little") + bytes(4) for _ in range(20)
    )
    size = int.from_bytes(data[index + 4 : index + 8], "little")
    end = index + 8 + size
    data[end:end] = entries
    data[index + 4 : index + 8] = (size + len(entries)).to_bytes(4, "little")
    data[index:index] = empty * 20
    movi = data.index(b"LIST", data.index(b"LIST") + 4)
    while data[movi + 8 : movi + 12] != b"movi":
        movi = data.index(b"LIST", movi + 4)
    length = int.from_bytes(data[movi + 4 : movi + 8], "little") + 160
    data[movi + 4 : movi + 8] = length.to_bytes(4, "little")
    for place in (data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32):
        data[place : place + 4] = (40).to_bytes(4, "little")
    data[4:8] = (len(data) - 8).to_bytes(4, "little")
    source.write_bytes(data)
    with av.open(str(source)) as container:
        assert container.streams.video[0].frames == 40
    check(extract_five_ways(source), [n / 30 for n in range(20)])


def test_auto_transcodes_whatever_it_cannot_take(
    sources: Path, tmp_path: Path, ffmpeg: FfmpegBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmd_extract.decode.video.same_times", lambda *_: False)
    config = {"width": SIZE[0], "height": SIZE[1], "frame_short_side": 16}
    found = {}
    for transcode in ("auto", "always"):
        (tmp_path / transcode).mkdir()
        settings = ExtractConfig(**config, transcode=transcode)
        found[transcode] = extract_video(sources / "plain.mp4", settings, tmp_path / transcode, ffmpeg)
    assert not found["auto"].own_vectors
    for name in ("frame_jpeg", "keyframe_jpeg", "grid", "valid"):
        assert getattr(found["auto"], name).read_bytes() == getattr(found["always"], name).read_bytes()


def test_constant_rate_bounds_gaps(sources: Path, make_video: MakeVideo, tmp_path: Path, ffmpeg: FfmpegBinary) -> None:
    config = ExtractConfig(width=SIZE[0], height=SIZE[1], frame_short_side=16, fps="30")

    def count(name: str, stamps: list[int]) -> tuple[int, Damage, str]:
        source = restamp(sources / "plain.mp4", tmp_path / f"{name}.mkv", stamps)
        (tmp_path / name).mkdir()
        video = extract_video(source, config, tmp_path / name, ffmpeg)
        np.testing.assert_allclose(video.pts_seconds, np.arange(video.frame_count) / 30)
        return video.frame_count, video.damage, video.note

    regular = [3000 * n for n in range(FRAMES)]
    plain, *rest = count("regular", regular)
    assert FRAMES - 1 <= plain <= FRAMES, "the last frame has no duration"
    assert rest == [Damage.NONE, ""]
    short = count("short", [stamp + 6 * 90_000 * (stamp >= 36_000) for stamp in regular])
    assert short == (plain + 6 * 30, Damage.NONE, "")
    frames, damage, note = count("long", [stamp + 36_000 * 90_000 * (stamp >= 36_000) for stamp in regular])
    assert plain + 9 * 30 < frames <= plain + 10 * 30
    assert (damage, note) == (Damage.TIMES_REPAIRED, "jumps of the clock closed: 1")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_segments_are_cut_at_exact_multiples(
    make_video: MakeVideo, tmp_path: Path, ffmpeg: FfmpegBinary, suffix: str
) -> None:
    source = make_video(tmp_path / f"a.{suffix}", *PLAIN, size="64x48", frames=150)
    (tmp_path / "work").mkdir()
    config = ExtractConfig(width=SIZE[0], height=SIZE[1], frame_short_side=16, store_frames=False)
    video = extract_video(source, config, tmp_path / "work", ffmpeg)
    for tenths in range(1, 30):
        cuts, last = [0], 0
        for frame in range(12, 150, 12):  # at 30 frames per second, in integers
            if (segment := frame * 10 // (30 * tenths)) > last:
                cuts.append(frame)
            last = segment
        expected = list(itertools.pairwise([*cuts, 150]))
        assert cut_into_segments(video, tenths / 10) == expected, f"{tenths / 10} s"


@pytest.mark.skipif(find_spec("mvextractor") is None, reason="mvextractor is not installed")
@pytest.mark.parametrize("name", ["b.mp4", "variable.mkv"])
def test_readers_and_frames_do_not_change_a_shard(sources: Path, tmp_path: Path, name: str) -> None:
    source = sources / "b.mp4"
    if name == "variable.mkv":
        source = restamp(sources / "plain.mp4", tmp_path / name, [3000 * n * n for n in range(FRAMES)])
    found = {}
    for kind in ("frames", "pyav", "mvextractor"):
        (tmp_path / kind).mkdir()
        shutil.copy(source, tmp_path / kind / name)
        found[kind] = extract(tmp_path / kind, *(() if kind == "frames" else ("--no-frames", "--reader", kind)))[0]
    (shards, entry), (bare, bare_entry) = only(found["frames"]), only(found["pyav"])
    assert bare_entry == entry
    np.testing.assert_array_equal(bare.pts_seconds(entry), shards.pts_seconds(entry))
    for number in range(len(entry.keyframe_indices)):
        assert bytes(bare.keyframe_jpeg(entry, number)) == bytes(shards.keyframe_jpeg(entry, number))
    assert len({(found[reader] / "shard-00000.h5").read_bytes() for reader in ("pyav", "mvextractor")}) == 1
