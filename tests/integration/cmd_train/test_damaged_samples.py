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


def byte_range(folder: Path, video: int, kind: str) -> tuple[Path, int, int]:
    """Return the file and byte range of a video's JPEGs, or of a motion chunk of that video alone."""
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
    """Copy shards and overwrite the bytes of one video per kind with noise."""
    shutil.copytree(source, folder)
    for kind in kinds:
        path, start, stop = byte_range(folder, DAMAGED[kind], kind)
        raw = np.memmap(path, np.uint8, "r+")
        raw[start:stop] = np.random.default_rng(0).integers(0, 256, stop - start)
        raw.flush()
    return folder


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_video_stops_the_run_by_default(kind: str, few_shards: Path, tmp_path: Path) -> None:
    shards = damage(few_shards, tmp_path / "shards", kind)
    result = call(main, "pretrain", shards, tmp_path / "run", *OPTIONS)
    assert result.exit_code == 1
    name = ShardSet(shards).videos[DAMAGED[kind]].video_id
    assert f"1 damaged videos, but data.max_damaged allows 0: video {name}: " in result.output
    assert "step " in result.output


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_samples_damaged_within_the_limit_do_not_count(ranks: int, few_shards: Path, tmp_path: Path) -> None:
    shards = damage(few_shards, tmp_path / "shards", *DAMAGED)
    arguments = [shards, tmp_path / "run", *OPTIONS, "--set", "data.max_damaged=2"]
    process = launch(ranks, arguments, RECORD=str(tmp_path))
    output = finish(process)
    assert process.returncode == 0, output
    names = {ShardSet(shards).videos[number].video_id for number in DAMAGED.values()}
    assert output.count("Left out damaged video ") == 2
    assert "damaged video 2 of 2 allowed: " in output
    taken = [
        list(chain.from_iterable(parts)) for parts in zip(*(recorded(tmp_path, r) for r in range(ranks)), strict=True)
    ]
    for epoch in range(2):
        keys = list(chain.from_iterable(taken[EPOCH_STEPS * epoch : EPOCH_STEPS * (epoch + 1)]))
        missing = {(epoch, position) for position in range(24)} - set(keys)
        # Only some motion frames are damaged: an epoch may not use them.
        assert (epoch, DAMAGED["jpeg"]) in missing
        assert missing <= {(epoch, number) for number in DAMAGED.values()}
        assert len(keys) == len(set(keys))
    assert any(len(batch) < 8 for batch in taken)
    lines = metrics(tmp_path / "run")
    assert [line["context_candidates"] for line in lines] == [len(batch) for batch in taken]
    assert set(load_checkpoint(tmp_path / "run").load_state()["damaged"]) == names
    # The count continues after an interruption.
    shutil.rmtree(list_checkpoints(tmp_path / "run")[-1])
    process = launch(ranks, arguments)
    output = finish(process)
    assert process.returncode == 0, output
    assert "Left out damaged video" not in output, "it is already known"
    assert metrics(tmp_path / "run") == lines
