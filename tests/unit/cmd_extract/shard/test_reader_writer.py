from __future__ import annotations

import pickle
import shutil
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest

from cmd_extract import schema
from cmd_extract.config import ExtractConfig
from cmd_extract.decode.source import SourceInfo
from cmd_extract.decode.stamps import FrameTimes
from cmd_extract.decode.video import ExtractedVideo
from cmd_extract.errors import ShardError, VideoError
from cmd_extract.schema import VideoRecord
from cmd_extract.shard.file import OpenShard, open_hdf5
from cmd_extract.shard.index import ShardEntry
from cmd_extract.shard.reader import ShardReader, ShardSet
from cmd_extract.shard.writer import ShardWriter
from cmd_extract.system.reading import OpenFiles
from tests.indexes import write_index

CONFIG = ExtractConfig(width=64, height=48, frame_short_side=24)
GRID = (6, 8)


def fake_video(folder: Path, frames: int, seed: int) -> tuple[ExtractedVideo, dict]:
    """Return a video with random bytes instead of JPEGs, and its content."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    jpegs = [rng.bytes(int(rng.integers(1, 50))) for _ in range(frames)]
    keyframes = [rng.bytes(int(rng.integers(1, 80))) for _ in range(-(-frames // 12))]
    grid = rng.integers(-400, 400, (frames, 2, *GRID)).astype(np.int16)
    valid = rng.random((frames, *GRID)) < 0.5
    for name, content in {
        "f": b"".join(jpegs), "k": b"".join(keyframes), "g": grid.tobytes(), "v": valid.tobytes(),
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)
    indices = np.arange(0, frames, 12)
    video = ExtractedVideo(
        source=SourceInfo(
            stream_index=0,
            codec="h264",
            width=320,
            height=240,
            declared_frames=0,
            fps=25.0,
            fingerprint=f"{seed:064d}",
            file_bytes=9,
        ),
        frame_jpeg=folder / "f",
        frame_sizes=np.array([len(j) for j in jpegs]),
        times=FrameTimes(ticks=np.arange(frames), time_base=Fraction(1, 25)),
        frame_types=np.array([b"I" if i in indices else b"P" for i in range(frames)], "S1"),
        keyframe_jpeg=folder / "k",
        keyframe_sizes=np.array([len(j) for j in keyframes]),
        keyframe_indices=indices,
        grid=folder / "g",
        valid=folder / "v",
    )
    return video, {"jpegs": jpegs, "keyframes": keyframes, "grid": grid, "valid": valid}


def write_shard(folder: Path, videos: int = 3) -> tuple[Path, list[dict]]:
    contents = []
    (folder / "spool").mkdir(parents=True)
    writer = ShardWriter(
        folder / "shard-00000.h5",
        workdir=folder / "spool",
        config=CONFIG,
        described=CONFIG.describe("ffmpeg version test"),
        software={"ffmpeg": "test"},
        rows_hash="r",
    )
    for i in range(videos):
        video, content = fake_video(folder / f"video{i}", frames=5 + 20 * i, seed=i)
        splits = {"split1": "train" if i else "test", "split2": ""}
        writer.add_video(
            VideoRecord(row=2 * i, video_id=f"vidéo {i}", path=f"{i}.mp4", label="l", group="g", splits=splits),
            video,
        )
        contents.append(content)
    failed = VideoRecord(row=1, video_id="bad", path="b\udcffad.mp4")
    writer.add_failure(failed, VideoError("probe", "no\nvideo"))
    written = writer.finish()
    assert (written.videos, written.failures) == (videos, 1)
    return folder / "shard-00000.h5", contents


def entry_of(path: Path) -> ShardEntry:
    """Return the entry of the shard of ``write_shard`` in an index."""
    return ShardEntry(path.name, "0" * 64, path.stat().st_size, 3, 75, 1, 0, first_row=0, end_row=5, rows_hash="r")


def test_round_trip(tmp_path: Path) -> None:
    path, contents = write_shard(tmp_path)
    reader = ShardReader(path)
    columns = {"label": ["a", "b", "c", "d", "e"], "group": ["g"] * 5, "split1": ["test", "", "train", "", "val"]}
    write_index(tmp_path, [entry_of(path)], columns)
    entries = ShardSet(tmp_path).videos
    assert [e.video_id for e in entries] == ["vidéo 0", "vidéo 1", "vidéo 2"]
    assert [e.row for e in entries] == [0, 2, 4]
    assert [(e.label, e.group, e.splits) for e in entries] == [
        ("a", "g", {"split1": "test"}),
        ("c", "g", {"split1": "train"}),
        ("e", "g", {"split1": "val"}),
    ]
    assert reader.row_ids() == {0: "vidéo 0", 1: "bad", 2: "vidéo 1", 4: "vidéo 2"}
    assert entries[2].keyframe_indices == (0, 12, 24, 36)
    assert entries[1].fps == pytest.approx(25)
    for position, content in enumerate(contents):
        frames = len(content["jpegs"])
        order = [frames - 1, 0, frames // 2]
        assert [bytes(j) for j in reader.frame_jpegs(position, order)] == [content["jpegs"][i] for i in order]
        for number, jpeg in enumerate(content["keyframes"]):
            assert bytes(reader.keyframe_jpeg(position, number)) == jpeg
        motion = reader.motion(position, 2, frames)
        np.testing.assert_array_equal(motion.grid_quarter_px, content["grid"][2:])
        np.testing.assert_array_equal(motion.valid, content["valid"][2:])
        np.testing.assert_allclose(reader.pts_seconds(position), np.arange(frames) / 25)
    assert reader.failures() == [(1, "b\udcffad.mp4", "probe", "no video")]
    header = reader.header
    assert (header.canonical_width, header.frame_width, header.grid_shape) == (64, 32, GRID)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_open_descriptors_do_not_grow_with_the_shards(tmp_path: Path) -> None:
    path, contents = write_shard(tmp_path)
    files = OpenFiles(limit=2)
    readers = [ShardReader(shutil.copy(path, tmp_path / f"{i}.h5"), files) for i in range(6)]
    before = len(list(Path("/proc/self/fd").iterdir()))
    for reader in readers:
        np.testing.assert_array_equal(reader.motion(0, 0, 5).grid_quarter_px, contents[0]["grid"])
        assert reader.motion(0, 5, 5).valid.shape == (0, *GRID)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_a_file_replaced_while_it_is_opened_is_an_error(tmp_path: Path) -> None:
    path, _ = write_shard(tmp_path)
    other, _ = write_shard(tmp_path / "other", videos=2)
    with open_hdf5(path) as file:
        other.replace(path)
        with pytest.raises(OSError, match="replaced while it was in use"):
            OpenShard(path, file, OpenFiles())


def test_frames_of_other_videos_are_out_of_range(tmp_path: Path) -> None:
    path, _ = write_shard(tmp_path)
    reader = ShardReader(path)
    for call in (
        lambda: reader.frame_jpegs(0, [5]),
        lambda: reader.frame_jpegs(1, [-1]),
        lambda: reader.keyframe_jpeg(0, 1),
        lambda: reader.motion(0, 0, 6),
    ):
        with pytest.raises(IndexError):
            call()


def test_bytes_do_not_depend_on_the_time_of_writing(tmp_path: Path) -> None:
    first, _ = write_shard(tmp_path / "a")
    second, _ = write_shard(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_no_dataset_has_variable_length_strings_and_jpegs_are_contiguous(tmp_path: Path) -> None:
    path, _ = write_shard(tmp_path)
    with h5py.File(path) as file:
        datasets: list[h5py.Dataset] = []
        file.visititems(lambda _, item: datasets.append(item) if isinstance(item, h5py.Dataset) else None)
        assert len(datasets) > 18
        for dataset in datasets:
            assert dataset.dtype.kind in "iufS", dataset.name
            assert h5py.check_vlen_dtype(dataset.dtype) is None
        assert file[schema.FRAME_JPEG].chunks is None
        assert file[schema.FRAME_JPEG].id.get_offset() is not None


def test_a_shard_without_videos_contains_its_failures(tmp_path: Path) -> None:
    path, _ = write_shard(tmp_path, videos=0)
    assert len(ShardReader(path).video_rows()) == 0
    assert len(ShardReader(path).failures()) == 1


def test_a_reader_can_be_used_after_pickling_and_closing(tmp_path: Path) -> None:
    path, contents = write_shard(tmp_path)
    reader = ShardReader(path)
    assert len(reader.video_rows()) == 3
    copy = pickle.loads(pickle.dumps(reader))
    reader.close()
    for one in (reader, copy):
        assert bytes(one.frame_jpegs(1, [3])[0]) == contents[1]["jpegs"][3]


def test_unknown_versions_and_other_files_are_rejected(tmp_path: Path) -> None:
    path, _ = write_shard(tmp_path)
    with h5py.File(path, "r+") as file:
        file.attrs[schema.ATTR_VERSION] = 99
    with pytest.raises(ShardError, match="version 99"):
        ShardReader(path).video_rows()
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(ShardError, match=r"text\.h5"):
        ShardReader(tmp_path / "text.h5").video_rows()
    with pytest.raises(ShardError, match=r"index\.json"):
        ShardSet(tmp_path)


def test_a_failed_write_leaves_no_file_behind(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    video, _ = fake_video(tmp_path / "video", frames=4, seed=0)
    video.grid.write_bytes(b"short")
    writer = ShardWriter(
        tmp_path / "shard-00000.h5", workdir=tmp_path / "spool", config=CONFIG,
        described=CONFIG.describe("x"), software={}, rows_hash="r",
    )  # fmt: skip
    writer.add_video(VideoRecord(row=0, video_id="v", path="v"), video)
    with pytest.raises(ValueError, match=r"cannot reshape|buffer size"):
        writer.finish()
    assert {path.name for path in tmp_path.iterdir()} == {"spool", "video"}
