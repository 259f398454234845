from __future__ import annotations

import shutil
from itertools import chain
from pathlib import Path

import h5py
import numpy as np
import pytest

from extract import schema
from extract.shard_reader import ShardSet
from tests.integration.training import finish, launch, metrics, options, recorded
from train.checkpoint import list_checkpoints, load_checkpoint

OPTIONS = options(optim__epochs=2, run__checkpoint_epochs=1)
VIDEO = 5
EPOCH_STEPS = 3


@pytest.fixture(params=["jpeg", "motion"])
def damaged(request: pytest.FixtureRequest, few_shards: Path, tmp_path: Path) -> Path:
    """Shards with rubbish in the bytes of one video."""
    folder = tmp_path / "shards"
    shutil.copytree(few_shards, folder)
    shards = ShardSet(folder)
    entry = shards.videos[VIDEO]
    path = folder / schema.SHARD_PATTERN.format(entry.shard)
    with h5py.File(path, "r") as file:
        first = int(file[schema.VIDEO_FIRST_FRAME][entry.position])
        if request.param == "jpeg":
            offsets = file[schema.FRAME_OFFSET][first : first + entry.frame_count + 1]
            start = int(offsets[0]) + file[schema.FRAME_JPEG].id.get_offset()
            stop = int(offsets[-1]) + file[schema.FRAME_JPEG].id.get_offset()
        else:
            grid = file[schema.MOTION_GRID]
            # A chunk that holds frames of this video only.
            chunk = -(-first // schema.MOTION_CHUNK_FRAMES) * schema.MOTION_CHUNK_FRAMES
            info = grid.id.get_chunk_info_by_coord((chunk, 0, 0, 0))
            start, stop = info.byte_offset, info.byte_offset + info.size
    raw = np.memmap(path, np.uint8, "r+")
    raw[start:stop] = np.random.default_rng(0).integers(0, 256, stop - start)
    raw.flush()
    return folder


def test_damage_stops_at_once_by_default(damaged: Path, tmp_path: Path) -> None:
    process = launch(1, [damaged, tmp_path / "run", *OPTIONS])
    said = finish(process)
    assert process.returncode == 1
    name = ShardSet(damaged).videos[VIDEO].video_id
    assert f"1 damaged videos, data.max_damaged allows 0: video {name}: " in said
    assert "step " in said


@pytest.mark.parametrize("ranks", [1, 2])
def test_damage_within_the_limit_makes_batches_smaller(ranks: int, damaged: Path, tmp_path: Path) -> None:
    process = launch(ranks, [damaged, tmp_path / "run", *OPTIONS, "--set", "data.max_damaged=1"], RECORD=str(tmp_path))
    said = finish(process)
    assert process.returncode == 0, said
    name = ShardSet(damaged).videos[VIDEO].video_id
    assert said.count("damaged, left out (1 of 1 allowed)") == 1
    assert said.count(f"left out (1 of 1 allowed): {name}: video {name}: ") == 1
    taken = [
        list(chain.from_iterable(parts)) for parts in zip(*(recorded(tmp_path, r) for r in range(ranks)), strict=True)
    ]
    for epoch in range(2):
        keys = list(chain.from_iterable(taken[EPOCH_STEPS * epoch : EPOCH_STEPS * (epoch + 1)]))
        missing = {(epoch, position) for position in range(24)} - set(keys)
        # Motion is damaged in some frames only: an epoch may miss them.
        assert missing <= {(epoch, VIDEO)}
        assert len(keys) == len(set(keys))
    assert any(len(batch) == 7 for batch in taken)
    lines = metrics(tmp_path / "run")
    assert [line["context_candidates"] for line in lines] == [len(batch) for batch in taken]
    assert set(load_checkpoint(tmp_path / "run").load_state()["damaged"]) == {name}
    # The count goes on after an interruption.
    shutil.rmtree(list_checkpoints(tmp_path / "run")[-1])
    process = launch(ranks, [damaged, tmp_path / "run", *OPTIONS, "--set", "data.max_damaged=1"])
    said = finish(process)
    assert process.returncode == 0, said
    assert "damaged, left out" not in said, "it is known already"
    assert metrics(tmp_path / "run") == lines
