import pickle
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from torch import nn
from torch.utils.data import DataLoader

from cmd_extract.schema import ShardHeader, VideoEntry
from cmd_train.config import build_config
from cmd_train.data.batch import unpack_batches
from cmd_train.data.batch_memory import BatchPool, release
from cmd_train.data.dataset import DamagedSampleError, EvalDataset, PretrainDataset
from cmd_train.data.epoch_sampler import EpochSampler
from cmd_train.data.sampling import SamplingConfig, plan_sample, sample_rng
from cmd_train.distributed.process_group import RankContext
from cmd_train.engine.damaged_samples import TolerantDataset
from cmd_train.engine.dry_run import perform_dry_run
from cmd_train.engine.loop import train
from cmd_train.engine.objective import PretrainObjective
from cmd_train.engine.setup import TrainingTask
from tests.listed_videos import ListedVideos

HEADER = ShardHeader(
    config={}, config_hash="", canonical_width=68, canonical_height=52, frame_width=34, frame_height=26, cell_px=8
)
SAMPLING = SamplingConfig(clip_frames=4, stride=4, motion_frames=4)
LENGTHS = (90, 7, 30)


def jpeg(width: int, height: int, shade: int) -> bytes:
    picture = np.full((height, width, 3), shade, np.uint8)
    picture[..., 1] //= 2
    return simplejpeg.encode_jpeg(picture, quality=98, colorsubsampling="444")


class MemoryShards:
    """Shards in memory: frame f of video v has red value 2 * f + v, keyframe k 10 * k + v; the motion is (f, -f)."""

    header = HEADER

    def __init__(self, damage: str = "") -> None:
        self.damage = damage
        self.read: list[int] = []

    def frame_jpegs(self, entry: VideoEntry, frames: Sequence[int]) -> list[bytes]:
        self.read += frames
        stored = [jpeg(34, 26, 2 * frame + entry.row) for frame in frames]
        if self.damage == "frame":
            stored[1] = stored[1][:-40]
        return stored

    def keyframe_jpeg(self, entry: VideoEntry, keyframe: int) -> memoryview:
        width = {"keyframe": 34, "large keyframe": 70}.get(self.damage, 68)
        return memoryview(jpeg(width, 52, 10 * keyframe + entry.row))

    def read_motion(self, entry: VideoEntry, start: int, grid: np.ndarray, valid: np.ndarray) -> None:
        if self.damage == "motion":
            raise OSError("chunk 3 cannot be decompressed")
        stop = start + len(grid)
        assert 0 <= start < stop <= entry.frame_count
        frames = np.arange(start, stop, dtype=np.int16).reshape(-1, 1, 1, 1)
        signs = np.array([1, -1], np.int16).reshape(1, 2, 1, 1)
        grid[:] = frames * signs * np.ones((1, 2, 7, 9), np.int16)
        valid[:] = True


def entries() -> tuple[VideoEntry, ...]:
    return tuple(
        VideoEntry(
            row=row,
            video_id=f"video-{row}",
            label="",
            group="",
            splits={},
            frame_count=count,
            fps=25.0,
            source_width=68,
            source_height=52,
            codec="h264",
            fingerprint="",
            keyframe_indices=tuple(range(0, count, 12)),
            shard=0,
            position=row,
        )
        for row, count in enumerate(LENGTHS)
    )


def dataset(damage: str = "", seed: int = 5) -> PretrainDataset:
    return PretrainDataset(MemoryShards(damage), entries(), SAMPLING, seed=seed)


@pytest.mark.parametrize(("epoch", "position"), [(0, 0), (0, 1), (3, 2), (3, 5)])
def test_a_sample_follows_its_plan(epoch: int, position: int) -> None:
    sample = dataset()[epoch, position]
    video = position % 3
    keyframes = range(0, LENGTHS[video], 12)
    plan = plan_sample(LENGTHS[video], keyframes, SAMPLING, sample_rng(5, epoch, position))
    assert sample.plan == plan
    assert sample.video == video
    assert sample.clip_u8.shape == (4, 26, 34, 3)
    np.testing.assert_allclose(sample.clip_u8[:, 3, 4, 0], [2 * f + video for f in plan.clip_frames], atol=2)
    assert sample.keyframe_u8.shape == (52, 68, 3)
    assert sample.keyframe_u8[20, 20, 0] == pytest.approx(10 * plan.keyframe + video, abs=2)
    for window, (start, count, _) in enumerate(plan.motion_windows):
        frames = [*range(start, start + count), *[0] * (4 - count)]
        np.testing.assert_array_equal(sample.motion_quarter_px[window, :, 0, 6, 8], frames)
        np.testing.assert_array_equal(sample.motion_quarter_px[window, :, 1, 0, 0], np.negative(frames))
        np.testing.assert_array_equal(sample.motion_valid[window].all((1, 2)), np.arange(4) < count)
        np.testing.assert_array_equal(sample.motion_valid[window].any((1, 2)), np.arange(4) < count)


def test_the_motion_of_a_clip_is_read_evenly_spaced() -> None:
    """Four clip frames at stride 4 have a window of 16 motion frames; the shortest video lowers the stride to 2."""
    sampling = replace(SAMPLING, motion_window="clip", temporal_negatives=0)
    data = PretrainDataset(MemoryShards(), entries(), sampling, seed=5)
    for position, stride in ((0, 4), (1, 2), (2, 4)):
        sample = data[0, position]
        start = sample.plan.clip_frames[0]
        assert sample.plan.stride == stride
        shown = [start + i * 4 * stride // 16 for i in range(16)]
        expected = [frame if frame < LENGTHS[position] else 0 for frame in shown]
        assert sample.motion_quarter_px[0, :, 0, 6, 8].tolist() == expected
        existing = [frame < LENGTHS[position] for frame in shown]
        assert sample.motion_valid[0].all((1, 2)).tolist() == sample.motion_valid[0].any((1, 2)).tolist() == existing


def test_colors_are_in_rgb_order() -> None:
    red, green, _ = dataset()[0, 0].keyframe_u8[5, 5].astype(int)
    assert red >= green


def test_a_batch_contains_its_samples_and_keys() -> None:
    data = dataset()
    keys = [(0, 0), (0, 1), (7, 4)]
    samples = [data[key] for key in keys]
    batch = TolerantDataset(data)[keys].unpack()
    for number, sample in enumerate(samples):
        np.testing.assert_array_equal(batch.clip_u8_BTHWC[number], sample.clip_u8)
        np.testing.assert_array_equal(batch.keyframe_u8_BHWC[number], sample.keyframe_u8)
        np.testing.assert_array_equal(batch.motion_quarter_px_BWTCHW[number], sample.motion_quarter_px)
        np.testing.assert_array_equal(batch.motion_valid_BWTHW[number], sample.motion_valid)
    assert batch.keys == tuple(keys)
    assert batch.video_B.tolist() == [0, 1, 1]
    assert batch.clip_u8_BTHWC.shape == (3, 4, 26, 34, 3)
    assert batch.keyframe_u8_BHWC.shape == (3, 52, 68, 3)
    assert batch.motion_quarter_px_BWTCHW.shape == (3, 4, 4, 2, 7, 9)
    assert batch.motion_quarter_px_BWTCHW.dtype == torch.int16
    assert batch.motion_valid_BWTHW.dtype == torch.bool
    assert batch.window_valid_BW.tolist() == [list(sample.plan.window_valid) for sample in samples]
    assert not batch.window_valid_BW[1].all()  # 7 frames: too few for three negatives
    assert batch.report.samples == 3
    assert batch.report.stride_shrunk == 2
    assert batch.report.motion_padded == 2
    moved = batch.to("meta")
    assert moved.clip_u8_BTHWC.device.type == "meta"
    assert moved.keys == batch.keys
    assert len(moved) == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("frame", "frame .* JPEG"),
        ("keyframe", "keyframe .* 34 x 52 .* 68 x 52"),
        ("large keyframe", "keyframe .* 70 x 52 .* 68 x 52"),
        ("motion", "motion of frames .*decompressed"),
    ],
)
def test_damage_names_the_video(damage: str, message: str) -> None:
    with pytest.raises(DamagedSampleError, match=f"^video video-2: {message}"):
        dataset(damage)[0, 2]


def test_errors_of_workers_are_raised_in_the_parent() -> None:
    loader = iter(DataLoader(TolerantDataset(dataset("frame")), batch_size=None, sampler=[[(0, 2)]], num_workers=1))
    with pytest.raises(DamagedSampleError, match="all samples of a batch are damaged: video video-2: frame"):
        next(loader)


def test_workers_do_not_change_batches() -> None:
    sampler = EpochSampler(video_count=3, global_batch=2, epochs=2, seed=1, samples_per_video=2)
    alone, shared = (
        list(DataLoader(TolerantDataset(dataset()), batch_size=None, sampler=sampler, num_workers=workers))
        for workers in (0, 2)
    )
    assert len(alone) == 6
    for first, second in zip((p.unpack() for p in alone), (p.unpack() for p in shared), strict=True):
        assert first.keys == second.keys
        assert first.report == second.report
        assert torch.equal(first.clip_u8_BTHWC, second.clip_u8_BTHWC)
        assert torch.equal(first.keyframe_u8_BHWC, second.keyframe_u8_BHWC)
        assert torch.equal(first.motion_quarter_px_BWTCHW, second.motion_quarter_px_BWTCHW)
        assert torch.equal(first.motion_valid_BWTHW, second.motion_valid_BWTHW)
        assert second.clip_u8_BTHWC.is_shared(), "not copied"


def test_reused_memory_is_not_overwritten_while_in_use() -> None:
    sampler = EpochSampler(video_count=3, global_batch=2, epochs=8, seed=1, samples_per_video=2)
    alone = list(DataLoader(TolerantDataset(dataset()), batch_size=None, sampler=sampler))
    loader = DataLoader(TolerantDataset(dataset()), batch_size=None, sampler=sampler, num_workers=2, prefetch_factor=2)
    for expected, batch in zip((p.unpack() for p in alone), unpack_batches(loader), strict=True):
        time.sleep(0.01)  # a block released too early would have been overwritten by the workers by now
        assert batch.keys == expected.keys
        assert torch.equal(batch.clip_u8_BTHWC, expected.clip_u8_BTHWC)
        assert torch.equal(batch.motion_quarter_px_BWTCHW, expected.motion_quarter_px_BWTCHW)
    assert len(alone) == 24


def test_a_block_in_use_is_not_handed_out_again() -> None:
    layout, pool = dataset().layout(2), BatchPool()
    first, second = pool.take(layout), pool.take(layout)
    assert first is not second
    release(first.block)
    assert pool.take(layout) is first
    assert pool.take(layout) not in (first, second)


def test_damaged_samples_are_masked_copies_without_motion() -> None:
    class OneDamaged(MemoryShards):
        def frame_jpegs(self, entry: VideoEntry, frames: Sequence[int]) -> list[bytes]:
            self.damage = "frame" if entry.row == 1 else ""
            return super().frame_jpegs(entry, frames)

    data = PretrainDataset(OneDamaged(), entries(), SAMPLING, seed=5)
    batch = TolerantDataset(data)[[(0, 0), (0, 1), (0, 2), (1, 1)]].unpack()
    whole = TolerantDataset(dataset())[[(0, 0), (0, 2)]].unpack()
    assert [video for video, _ in batch.damaged] == ["video-1", "video-1"]
    assert batch.valid_B.tolist() == [True, False, True, False]
    assert batch.keys == ((0, 0), (0, 0), (0, 2), (0, 2))
    assert batch.video_B.tolist() == [0, 0, 2, 2]
    assert batch.report == whole.report
    for name in ("clip_u8_BTHWC", "keyframe_u8_BHWC", "motion_quarter_px_BWTCHW", "motion_valid_BWTHW"):
        assert torch.equal(getattr(batch, name)[[0, 2]], getattr(whole, name))
    for name in ("clip_u8_BTHWC", "keyframe_u8_BHWC"):
        assert torch.equal(getattr(batch, name)[[1, 3]], getattr(whole, name))
    for name in ("motion_quarter_px_BWTCHW", "motion_valid_BWTHW", "window_valid_BW"):
        assert not getattr(batch, name)[[1, 3]].any()


def test_datasets_can_be_pickled_and_require_videos() -> None:
    copy = pickle.loads(pickle.dumps(dataset()))
    np.testing.assert_array_equal(copy[2, 1].clip_u8, dataset()[2, 1].clip_u8)
    assert dataset(seed=6)[0, 0].plan != dataset(seed=5)[0, 0].plan
    with pytest.raises(ValueError, match="entries"):
        PretrainDataset(MemoryShards(), (), SAMPLING, seed=0)


def test_shards_without_small_frames_are_rejected_before_anything_is_written(tmp_path: Path) -> None:
    shards = MemoryShards()
    shards.header = replace(HEADER, config={"store_frames": False})
    config, run_dir = build_config("demo"), tmp_path / "run"
    objective = PretrainObjective(config, shards.header)
    task = TrainingTask(
        model=nn.Identity(),
        objective=objective,
        shards=shards,
        entries=ListedVideos(entries()),
        config=config,
        run_dir=run_dir,
        context=RankContext(rank=0, world_size=1, device=torch.device("cpu")),
        data_hash="",
        log=print,
    )
    for perform in (train, perform_dry_run):
        with pytest.raises(ValueError, match="no-frames"):
            perform(task)
    assert not run_dir.exists()
    with pytest.raises(ValueError, match="no-frames"):
        EvalDataset(shards, ListedVideos(entries()), SAMPLING)


def test_evaluation_reads_each_frame_only_once() -> None:
    shards = MemoryShards()
    data = EvalDataset(shards, ListedVideos(entries()), SAMPLING, clips=3)
    assert len(data) == 3
    sample = data[2]
    # 30 frames, span 13: clips start at 0, 8 and 17.
    expected = np.array([[0, 4, 8, 12], [8, 12, 16, 20], [17, 21, 25, 29]])
    np.testing.assert_allclose(sample.clips_u8[:, :, 9, 9, 0], 2 * expected + 2, atol=2)
    assert shards.read == sorted(set(expected.ravel().tolist()))
    assert data[1].clips_u8.shape == (3, 4, 26, 34, 3)
    assert data[1].video == 1
    assert (data.report().samples, data.report().stride_shrunk) == (3, 1)


def test_an_epoch_contains_each_sample_once_in_a_new_order() -> None:
    sampler = EpochSampler(video_count=10, global_batch=4, epochs=3, seed=0, samples_per_video=3)
    orders = [sampler.epoch_order(epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert orders[0] != orders[1]
    videos = np.array(orders[0]).reshape(3, 10) % 10
    assert all(sorted(row) == list(range(10)) for row in videos.tolist())
    assert videos[0].tolist() != videos[1].tolist()
    assert videos[0].tolist() != sample_rng(0, 0, 0).permutation(10).tolist(), "a stream of its own"
    assert sampler.steps_per_epoch == 7
    batches = list(sampler)
    assert len(batches) == len(sampler) == 21
    assert [key for batch in batches[7:14] for key in batch] == [(1, position) for position in orders[1][:28]]


def test_an_epoch_by_blocks_needs_few_shards_at_a_time() -> None:
    shards = tuple(number // 5 for number in range(40))
    sampler = EpochSampler(video_count=40, global_batch=4, epochs=2, seed=0, shards=shards, shuffle_shards=3)
    orders = [sampler.epoch_order(epoch) for epoch in range(2)]
    blocks = []
    for order in orders:
        assert sorted(order.tolist()) == list(range(40))
        found = np.array(shards)[order]
        cuts = [15, 30] if len(set(found[:15].tolist())) == 3 else [10, 25]
        parts = [set(part.tolist()) for part in np.split(found, cuts)]
        assert sum(map(len, parts)) == 8
        assert max(map(len, parts)) == 3
        assert (np.diff(found) != 0).sum() > 16  # mixed within a block
        blocks.append(parts)
    assert blocks[0] != blocks[1]
    with pytest.raises(ValueError, match="shards: must be 40 numbers, got 0"):
        EpochSampler(video_count=40, global_batch=4, epochs=2, seed=0, shuffle_shards=3)


@pytest.mark.parametrize(("videos", "batch"), [(10, 4), (10, 10), (10, 9), (11, 7), (5, 2)])
def test_no_video_is_its_own_negative_where_passes_meet(videos: int, batch: int) -> None:
    sampler = EpochSampler(video_count=videos, global_batch=batch, epochs=20, seed=0, samples_per_video=3)
    for keys in sampler:
        assert len({position % videos for _, position in keys}) == batch
    for epoch in range(20):
        passes = sampler.epoch_order(epoch).reshape(3, videos)
        assert (np.sort(passes) == np.arange(3 * videos).reshape(3, videos)).all()


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_global_batches_do_not_depend_on_the_number_of_ranks(world_size: int) -> None:
    def sampler(rank: int, world: int) -> EpochSampler:
        return EpochSampler(video_count=20, global_batch=6, epochs=2, seed=4, rank=rank, world_size=world)

    parts = zip(*(sampler(rank, world_size) for rank in range(world_size)), strict=True)
    assert [list(chain.from_iterable(part)) for part in parts] == list(sampler(0, 1))


def test_sampler_can_resume_at_any_step() -> None:
    def sampler(first_step: int) -> EpochSampler:
        return EpochSampler(video_count=9, global_batch=4, epochs=3, seed=4, first_step=first_step)

    whole = list(sampler(0))
    for first_step in range(len(whole) + 1):
        assert list(sampler(first_step)) == whole[first_step:]
        assert len(sampler(first_step)) == len(whole) - first_step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"video_count": 3},
            r"optim\.batch_size \(--batch-size\): .* the 3 samples .* data\.samples_per_video=1.*got 4",
        ),
        ({"world_size": 3}, r"optim\.batch_size \(--batch-size\): must be a multiple of the number of ranks, 3, got 4"),
        ({"rank": 1}, "rank: must be .* got 1"),
        ({"first_step": 5}, "first_step: must be at least 0 and at most 4, got 5"),
        ({"epochs": 0}, "epochs: must be at least 1, got 0"),
        ({"global_batch": 0}, "global_batch: must be at least 1, got 0"),
    ],
)
def test_sampler_errors_name_field_and_value(change: dict[str, int], message: str) -> None:
    arguments = {"video_count": 8, "global_batch": 4, "epochs": 2, "seed": 0}
    with pytest.raises(ValueError, match=message):
        EpochSampler(**(arguments | change))


def test_a_tiny_dataset_can_repeat_its_videos() -> None:
    sampler = EpochSampler(video_count=3, global_batch=4, epochs=1, seed=0, samples_per_video=4)
    assert len(sampler) == 3
