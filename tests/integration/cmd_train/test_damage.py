from __future__ import annotations

import shutil
from itertools import chain
from pathlib import Path

import h5py
import numpy as np
import pytest

from cmd_extract import schema
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import list_checkpoints, load_checkpoint
from cmd_train.cli.main import main
from tests.command_line import call
from tests.integration.cmd_train.training import finish, launch, metrics, options, recorded

OPTIONS = options(optim__epochs=2, run__checkpoint_epochs=1)
DAMAGED = {"jpeg": 5, "motion": 11}
EPOCH_STEPS = 3


def place_of_bytes(folder: Path, video: int, kind: str) -> tuple[Path, int, int]:
    """The file in which a video's JPEGs lie, or a chunk of its motion and of no other's, and from where to where."""
    entry = ShardSet(folder).videos[video]
    path = folder / schema.SHARD_PATTERN.format(entry.shard)
    with h5py.File(path, "r") as file:
        first = int(file[schema.VIDEO_FIRST_FRAME][entry.position])
        if kind == "jpeg":
            offsets = file[schema.FRAME_OFFSET][first : first + entry.frame_count + 1]
            start = file[schema.FRAME_JPEG].id.get_offset()
            return path, start + int(offsets[0]), start + int(offsets[-1])
        chunk = -(-first // schema.MOTION_CHUNK_FRAMES) * schema.MOTION_CHUNK_FRAMES
        assert chunk + schema.MOTION_CHUNK_FRAMES <= first + entry.frame_count
        info = file[schema.MOTION_GRID].id.get_chunk_info_by_coord((chunk, 0, 0, 0))
        return path, info.byte_offset, info.byte_offset + info.size


def damage(source: Path, folder: Path, *kinds: str) -> Path:
    """A copy of shards with rubbish in the bytes of one video, or of one for each kind."""
    shutil.copytree(source, folder)
    for kind in kinds:
        path, start, stop = place_of_bytes(folder, DAMAGED[kind], kind)
        raw = np.memmap(path, np.uint8, "r+")
        raw[start:stop] = np.random.default_rng(0).integers(0, 256, stop - start)
        raw.flush()
    return folder


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_stops_at_once_by_default(kind: str, few_shards: Path, tmp_path: Path) -> None:
    shards = damage(few_shards, tmp_path / "shards", kind)
    result = call(main, "pretrain", shards, tmp_path / "run", *OPTIONS)
    assert result.exit_code == 1
    name = ShardSet(shards).videos[DAMAGED[kind]].video_id
    assert f"1 damaged videos, data.max_damaged allows 0: video {name}: " in result.output
    assert "step " in result.output


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_damage_within_the_limit_makes_batches_smaller(ranks: int, few_shards: Path, tmp_path: Path) -> None:
    shards = damage(few_shards, tmp_path / "shards", *DAMAGED)
    arguments = [shards, tmp_path / "run", *OPTIONS, "--set", "data.max_damaged=2"]
    process = launch(ranks, arguments, RECORD=str(tmp_path))
    said = finish(process)
    assert process.returncode == 0, said
    names = {ShardSet(shards).videos[number].video_id for number in DAMAGED.values()}
    assert said.count("damaged, left out (") == 2
    assert "(2 of 2 allowed)" in said
    taken = [
        list(chain.from_iterable(parts)) for parts in zip(*(recorded(tmp_path, r) for r in range(ranks)), strict=True)
    ]
    for epoch in range(2):
        keys = list(chain.from_iterable(taken[EPOCH_STEPS * epoch : EPOCH_STEPS * (epoch + 1)]))
        missing = {(epoch, position) for position in range(24)} - set(keys)
        # Motion is damaged in some frames only: an epoch may miss them.
        assert (epoch, DAMAGED["jpeg"]) in missing
        assert missing <= {(epoch, number) for number in DAMAGED.values()}
        assert len(keys) == len(set(keys))
    assert any(len(batch) < 8 for batch in taken)
    lines = metrics(tmp_path / "run")
    assert [line["context_candidates"] for line in lines] == [len(batch) for batch in taken]
    assert set(load_checkpoint(tmp_path / "run").load_state()["damaged"]) == names
    # The count goes on after an interruption.
    shutil.rmtree(list_checkpoints(tmp_path / "run")[-1])
    process = launch(ranks, arguments)
    said = finish(process)
    assert process.returncode == 0, said
    assert "damaged, left out" not in said, "it is known already"
    assert metrics(tmp_path / "run") == lines
