"""The public dataset of clips, used like any other dataset of torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import cmd_extract
from cmd_train import ShardDataset
from cmd_train.data.sampling import SamplingConfig, evaluation_clips

SIZES = {"clip_frames": 8, "stride": 2}


def test_items_are_clips_with_labels(few_shards: Path) -> None:
    dataset, shards = ShardDataset(few_shards, **SIZES), cmd_extract.open_shards(few_shards)
    assert len(dataset) == 24
    assert dataset.classes == ("left", "up")
    starts = set()
    for number in (0, 23):
        for _ in range(8):
            item = dataset[number]
            assert item["clip"].shape == (8, 128, 170, 3)
            assert item["clip"].dtype == torch.uint8
            assert dataset.classes[item["label"]] == dataset.videos[item["video"]].label == shards.videos[number].label
            frames = shards.clip(number)
            (start,) = [n for n in range(24 - 14) if np.array_equal(frames[n : n + 15 : 2], item["clip"])]
            starts.add(start)
    assert len(starts) > 2, "clips are drawn at random"


def test_evaluation_clips_are_evenly_spaced(few_shards: Path) -> None:
    dataset = ShardDataset(few_shards, clips=3, transform=lambda clips: clips.float() / 255, **SIZES)
    clips = dataset[4]["clip"]
    assert (clips.shape, clips.dtype) == ((3, 8, 128, 170, 3), torch.float32)
    expected = evaluation_clips(24, SamplingConfig(**SIZES), 3)
    frames = cmd_extract.open_shards(few_shards).clip(4)
    assert np.array_equal((clips * 255).round().numpy(), frames[np.array(expected)])


def test_motion_belongs_to_the_frames_of_the_clip(few_shards: Path) -> None:
    dataset = ShardDataset(few_shards, motion=True, clip_frames=8, stride=3)
    item, shards = dataset[2], cmd_extract.open_shards(few_shards)
    assert item["motion"].shape == (8, 2, 32, 43)
    assert item["valid"].shape == (8, 32, 43)
    frames, motion = shards.clip(2), shards.motion(2)
    (start,) = [n for n in range(24 - 21) if np.array_equal(frames[n : n + 22 : 3], item["clip"])]
    assert np.array_equal(item["motion"], motion.grid_quarter_px[start : start + 22 : 3])
    assert np.array_equal(item["valid"], motion.valid[start : start + 22 : 3])


def test_forked_workers_draw_other_clips_in_each_epoch(few_shards: Path) -> None:
    dataset = ShardDataset(few_shards, split_column="split", part="test", motion=True, **SIZES)
    assert next(iter(DataLoader(dataset, batch_size=2)))["clip"].shape == (2, 8, 128, 170, 3), (
        "opens files before a fork"
    )
    torch.manual_seed(5)
    loader = DataLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context="fork")
    batches = [list(loader), list(loader)]
    for epoch in batches:
        assert torch.cat([batch["video"] for batch in epoch]).tolist() == list(range(len(dataset)))
        assert all(batch["motion"].shape[1:] == (8, 2, 32, 43) for batch in epoch)
    pictures = [torch.cat([batch["clip"] for batch in epoch]) for epoch in batches]
    assert not torch.equal(*pictures)
    torch.manual_seed(5)
    assert torch.equal(torch.cat([batch["clip"] for batch in loader]), pictures[0]), "the seed decides"


@pytest.mark.slow
def test_spawned_workers_load_batches(few_shards: Path) -> None:
    dataset = ShardDataset(few_shards, motion=True, **SIZES)
    dataset[0]
    loader = DataLoader(dataset, batch_size=12, num_workers=1, multiprocessing_context="spawn")
    assert torch.cat([batch["video"] for batch in loader]).tolist() == list(range(24))


def test_invalid_settings_are_errors(few_shards: Path, tmp_path: Path) -> None:
    for words, changes in (
        ("motion: needs random clips", {"motion": True, "clips": 2}),
        ("clips: must be at least 1, got 0", {"clips": 0}),
        ("classes: up of the selected videos missing", {"classes": ("left", "down")}),
        ("part: 'nothing' of split column 'split' contains no videos", {"split_column": "split", "part": "nothing"}),
        ("stride: must be at least 1", {"stride": 0}),
    ):
        with pytest.raises(ValueError, match=words):
            ShardDataset(few_shards, **changes)
    with pytest.raises(cmd_extract.ShardError):
        ShardDataset(tmp_path)
    with pytest.raises(IndexError):
        ShardDataset(few_shards)[24]
