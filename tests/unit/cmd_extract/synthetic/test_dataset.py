from collections import Counter
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from av.codec.context import ThreadType
from numpy.typing import NDArray

from cmd_extract.errors import SynthesisError
from cmd_extract.manifest.records import read_manifest, write_manifest
from cmd_extract.schema import VideoRecord
from cmd_extract.synthetic.dataset import SyntheticConfig, plan, render_video, synthesize
from cmd_extract.synthetic.scenes import MOTIONS, ROTATIONS, TRANSLATIONS, ZOOMS, Scene, make_scene, video_rng
from cmd_extract.synthetic.textures import CONTEXTS
from tests.paths import ROOT

DEMO = ROOT / "data_manifests" / "demo.csv"
MOVING = SyntheticConfig(videos_per_combination=2, frames=40, contexts=("grass",), seed=5)
TINY = SyntheticConfig(
    videos_per_combination=2, width=96, height=64, frames=6, motions=("left", "right"), contexts=("wood",)
)


def silent(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="session")
def binary() -> str:
    return str(imageio_ffmpeg.get_ffmpeg_exe())


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory, binary: str) -> Path:
    out = tmp_path_factory.mktemp("moving")
    synthesize(MOVING, out, ffmpeg_binary=binary, workers=1, progress=silent)
    return out


def codec_motion(path: Path) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Per frame, block centers (N, 2) and displacements (N, 2) of the content, from vectors to earlier frames only."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = ThreadType.NONE
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"flags2": "+export_mvs"}
        for frame in container.decode(stream):
            side = frame.side_data.get("MOTION_VECTORS")
            raw = None if side is None else side.to_ndarray()
            if raw is None:  # an I-frame
                frames.append((np.zeros((0, 2)), np.zeros((0, 2))))
                continue
            raw = raw[raw["source"] < 0]
            scale = raw["motion_scale"].astype(np.float64)
            centers = np.stack([raw["dst_x"], raw["dst_y"]], 1).astype(np.float64)
            moves = -np.stack([raw["motion_x"] / scale, raw["motion_y"] / scale], 1)
            frames.append((centers, moves))
    return frames


def scene_of(record: VideoRecord) -> Scene:
    rng = video_rng(MOVING.seed, record.video_id)
    size = {"width": MOVING.width, "height": MOVING.height, "frames": MOVING.frames}
    return make_scene(record.label, record.group, rng, **size)


def near(centers: NDArray[np.float64], point: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    """Offsets of blocks from a point on the torus of object positions; NaN beyond ``reach``."""
    size = np.array([MOVING.width, MOVING.height])
    offsets = (centers - point + size / 2) % size - size / 2
    offsets[np.hypot(*offsets.T) > reach] = np.nan
    return offsets


@pytest.mark.parametrize("motion", TRANSLATIONS)
def test_codec_motion_of_translations(moving: Path, motion: str) -> None:
    for record in plan(MOVING):
        if record.label != motion:
            continue
        moves = np.concatenate([m for _, m in codec_motion(moving / record.path)])
        moves = moves[np.hypot(*moves.T) > 1.5]
        along, across = np.array(TRANSLATIONS[motion]), np.array(TRANSLATIONS[motion])[::-1]
        assert len(moves) > 500
        assert np.median(moves @ along) > 1.5
        assert abs(np.median(moves @ across)) < 0.5
        assert np.mean(moves @ along > 1) > 0.75


@pytest.mark.parametrize("motion", ROTATIONS)
def test_codec_motion_of_rotations(moving: Path, motion: str) -> None:
    for record in plan(MOVING):
        if record.label != motion:
            continue
        frames = codec_motion(moving / record.path)
        for item in scene_of(record).objects:
            velocities = []
            for (centers, moves), center in zip(frames, item.center_xy, strict=True):
                inside = np.isfinite(near(centers, center, 25)[:, 0])
                velocities.append(np.median(moves[inside], axis=0) if inside.any() else np.full(2, np.nan))
            v = np.stack(velocities)
            turn = v[:-8, 0] * v[8:, 1] - v[:-8, 1] * v[8:, 0]
            turn = turn[np.isfinite(turn) & (turn != 0)]
            assert len(turn) > 10
            # The y axis points down: right (1, 0), then down (0, 1), has a positive product and is clockwise.
            assert np.mean(np.sign(turn)) * {"clockwise": 1, "counterclockwise": -1}[motion] > 0.5


@pytest.mark.parametrize("motion", ZOOMS)
def test_codec_motion_of_zooms(moving: Path, motion: str) -> None:
    for record in plan(MOVING):
        if record.label != motion:
            continue
        rates = []
        for item in scene_of(record).objects:
            reach = 0.45 * min(item.mask.shape)
            for index, (centers, moves) in enumerate(codec_motion(moving / record.path)):
                offsets = near(centers, item.center_xy[index], reach * item.scale[index])
                outward = np.sum(moves * offsets, axis=1) / np.hypot(*offsets.T)
                rates.append(outward[np.isfinite(outward) & (np.hypot(*moves.T) > 1)])
        rate = np.concatenate(rates) * {"expanding": 1, "shrinking": -1}[motion]
        assert len(rate) > 200
        assert np.median(rate) > 0.8
        assert np.mean(rate > 0) > 0.75


def test_background_sways_slowly_and_returns() -> None:
    for record in plan(MOVING):
        view = scene_of(record).view_xy
        assert np.abs(np.diff(view, axis=0)).max() <= 1
        assert np.ptp(view, axis=0).max() <= 8


def test_videos_are_h264_with_b_frames(moving: Path) -> None:
    types = Counter()
    with av.open(str(moving / "videos" / "left-grass-00.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert (stream.width, stream.height, stream.average_rate) == (340, 256, 30)
        for frame in container.decode(stream):
            types[av.video.frame.PictureType(frame.pict_type).name] += 1
    assert types.total() == MOVING.frames
    assert types["B"] > 0
    assert types["P"] > 0


def test_decoded_frames_match_the_rendered_ones(moving: Path) -> None:
    record = plan(MOVING)[0]
    with av.open(str(moving / record.path)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    rendered = list(render_video(MOVING, record))
    assert len(decoded) == len(rendered)
    for index in (0, 17, 39):
        same = np.abs(decoded[index].astype(int) - rendered[index]).mean()
        other = np.abs(decoded[index].astype(int) - rendered[index - 8]).mean()
        assert same < 12 < other


def test_motion_and_context_are_balanced_and_independent() -> None:
    records = plan(SyntheticConfig())
    assert len(records) == 288
    assert Counter(r.splits["split"] for r in records) == {"train": 192, "test": 96}
    pairs = {(motion, context) for motion in MOTIONS for context in CONTEXTS}
    for part, count in (("train", 4), ("test", 2)):
        assert Counter((r.label, r.group) for r in records if r.splits["split"] == part) == dict.fromkeys(pairs, count)
    assert records[0].video_id == "left-bricks-00"
    assert records[0].path == "videos/left-bricks-00.mp4"
    assert len({r.video_id for r in records}) == 288


@pytest.mark.parametrize(("count", "tests"), [(2, 1), (3, 1), (4, 1), (6, 2), (10, 3), (101, 25)])
def test_a_quarter_of_the_videos_is_for_testing(count: int, tests: int) -> None:
    records = plan(SyntheticConfig(videos_per_combination=count, motions=("up",), contexts=("wood",)))
    assert [r.splits["split"] for r in records] == ["train"] * (count - tests) + ["test"] * tests


def test_frames_depend_on_seed_and_id_only() -> None:
    first, second = plan(TINY)[:2]
    frames = np.stack(list(render_video(TINY, first)))
    assert frames.shape == (6, 64, 96, 3)
    assert frames.dtype == np.uint8
    more = SyntheticConfig(videos_per_combination=5, width=96, height=64, frames=6, contexts=("bricks", "wood"))
    same = next(r for r in plan(more) if r.video_id == first.video_id)
    np.testing.assert_array_equal(frames, np.stack(list(render_video(more, same))))
    assert np.mean(frames != np.stack(list(render_video(TINY, second)))) > 0.5
    reseeded = SyntheticConfig(width=96, height=64, frames=6, seed=1)
    assert np.mean(frames != np.stack(list(render_video(reseeded, first)))) > 0.5


def test_contexts_differ_between_classes_and_within_them() -> None:
    config = SyntheticConfig(frames=2, motions=("up",))
    pictures: dict[str, list[NDArray[np.float64]]] = {}
    for record in plan(config):
        first = next(render_video(config, record)).astype(np.float64)
        pictures.setdefault(record.group, []).append(np.median(first, axis=(0, 1)))
    means = {context: np.mean(colors, axis=0) for context, colors in pictures.items()}
    for context, colors in pictures.items():
        for color in colors:
            distances = {other: np.abs(mean - color).sum() for other, mean in means.items()}
            assert min(distances, key=distances.__getitem__) == context
        assert len({tuple(color) for color in colors}) > 1


def test_synthesize_resumes_with_identical_bytes(tmp_path: Path, binary: str) -> None:
    calls: list[tuple[int, int]] = []

    def record(done: int, total: int) -> None:
        calls.append((done, total))

    manifest = synthesize(TINY, tmp_path / "a:1", ffmpeg_binary=binary, workers=2, progress=record)
    assert calls == [(n, 4) for n in range(5)]
    assert read_manifest(manifest) == plan(TINY)
    files = {p.name: p.read_bytes() for p in (tmp_path / "a:1" / "videos").iterdir()}
    assert len(files) == 4
    deleted = tmp_path / "a:1" / "videos" / "left-wood-01.mp4"
    deleted.unlink()
    (deleted.parent / "left-wood-00.mp4").write_bytes(b"kept")
    calls.clear()
    synthesize(TINY, tmp_path / "a:1", ffmpeg_binary=binary, workers=1, progress=record)
    assert calls == [(3, 4), (4, 4)]
    assert deleted.read_bytes() == files[deleted.name]
    assert (deleted.parent / "left-wood-00.mp4").read_bytes() == b"kept"


def test_synthesize_rejects_a_folder_with_other_settings(tmp_path: Path, binary: str) -> None:
    synthesize(TINY, tmp_path, ffmpeg_binary=binary, workers=1, progress=silent)
    with pytest.raises(ValueError, match="contains videos with other settings"):
        synthesize(SyntheticConfig(seed=1), tmp_path, ffmpeg_binary=binary, workers=1, progress=silent)
    with pytest.raises(ValueError, match="workers: must be at least 1, got 0"):
        synthesize(TINY, tmp_path, ffmpeg_binary=binary, workers=0, progress=silent)


@pytest.mark.parametrize("workers", [1, 2])
def test_ffmpeg_errors_are_reported(tmp_path: Path, workers: int) -> None:
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\nfor i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo line$i >&2; done\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(SynthesisError, match=r"left-wood-0\d: .*code 3: line3 \| .* \| line12") as caught:
        synthesize(TINY, tmp_path / "out", ffmpeg_binary=str(broken), workers=workers, progress=silent)
    assert "line2 " not in str(caught.value)
    assert not list((tmp_path / "out" / "videos").iterdir())
    assert not (tmp_path / "out" / "manifest.csv").exists()
    with pytest.raises(SynthesisError, match="cannot start"):
        synthesize(TINY, tmp_path / "b", ffmpeg_binary=str(tmp_path / "none"), workers=workers, progress=silent)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"videos_per_combination": 1}, "videos_per_combination: must be at least 2 and at most 10000, got 1"),
        ({"width": 341}, "width: must be even, got 341"),
        ({"height": 32}, "height: must be at least 64"),
        ({"frames": 1}, "frames: must be .* got 1"),
        ({"fps": 0}, "fps: must be .* got 0"),
        ({"seed": -1}, "seed: must be .* got -1"),
        ({"motions": ()}, "motions"),
        ({"motions": ("left", "left")}, "motions"),
        ({"contexts": ("lava",)}, "contexts: .*bricks.*lava"),
    ],
)
def test_errors_name_the_field(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        SyntheticConfig(**changes)  # type: ignore[arg-type] # also invalid types


def test_demo_manifest_is_the_default_configuration(tmp_path: Path) -> None:
    write_manifest(plan(SyntheticConfig()), tmp_path / "demo.csv")
    assert (tmp_path / "demo.csv").read_bytes() == DEMO.read_bytes()
