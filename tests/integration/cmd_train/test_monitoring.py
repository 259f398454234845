from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cmd_train.checkpoints.files import load_checkpoint
from cmd_train.cli.main import main
from tests.integration.cmd_train.training import finish, launch, metrics, options, same, weights


def pretrain(shards: Path, run_dir: Path, **changes: object) -> Result:
    return CliRunner().invoke(main, ["pretrain", str(shards), str(run_dir), *options(**changes)])


@pytest.fixture(scope="module")
def watched(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("watched") / "run"
    shown = {"run__knn_epochs": 1, "run__tensorboard": "true", "run__batch_picture": "true"}
    result = pretrain(few_shards, run_dir, optim__epochs=3, **shown)
    assert result.exit_code == 0, result.output
    return run_dir


def test_watching_does_not_change_the_training(watched: Path, few_shards: Path, tmp_path: Path) -> None:
    result = pretrain(few_shards, tmp_path / "run", optim__epochs=3)
    assert result.exit_code == 0, result.output
    assert same(weights(watched), weights(tmp_path / "run"))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"checkpoints", "config.json", "finished", "metrics.jsonl"}


def test_retrieval_is_logged_at_epochs_and_picks_the_best(watched: Path) -> None:
    lines = metrics(watched)
    seen = {line["step"]: line["retrieval_r1"] for line in lines if "retrieval_r1" in line}
    assert list(seen) == [3, 6, 9]
    assert all(0 <= value <= 1 for value in seen.values())
    best = load_checkpoint(watched / "checkpoints" / "best").step
    assert best == max(seen, key=lambda step: (seen[step], -step))


@pytest.mark.slow
def test_ranks_share_the_retrieval(few_shards: Path, tmp_path: Path) -> None:
    process = launch(2, [few_shards, tmp_path / "run", *options(optim__epochs=1, run__knn_epochs=1)])
    said = finish(process)
    assert process.returncode == 0, said
    several = metrics(tmp_path / "run")[-1]
    # The same network, looked at by one process.
    from cmd_extract.shard.reader import ShardSet
    from cmd_train.config import config_from_dict
    from cmd_train.distributed.process_group import process_group
    from cmd_train.models.build import build_model
    from cmd_train.monitoring.knn import RetrievalMonitor

    checkpoint = load_checkpoint(tmp_path / "run")
    config = config_from_dict(checkpoint.config["settings"])
    model = build_model(config.model, seed=config.run.seed)
    model.load_state_dict(checkpoint.weights)
    shards = ShardSet(few_shards)
    with process_group("cpu") as placement:
        alone = RetrievalMonitor(shards, shards.videos, config, placement)(model)
    assert model.training
    assert alone == {name: several[name] for name in ("retrieval_r1", "retrieval_r5")}


def test_tensorboard_has_every_step(watched: Path) -> None:
    events = EventAccumulator(str(watched / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"run/loss", "run/lr", "run/grad_norm", "run/clips_per_second", "run/data_wait_share"} <= tags
    assert {"context/loss", "context/top1", "motion/top1", "retrieval/r1"} <= tags
    lines = [json.loads(line) for line in (watched / "metrics.jsonl").read_text().splitlines()]
    assert [e.step for e in events.Scalars("run/loss")] == [line["step"] for line in lines]
    np.testing.assert_allclose(
        [e.value for e in events.Scalars("run/loss")], [line["loss"] for line in lines], rtol=1e-6
    )


def test_the_first_batch_is_drawn(watched: Path) -> None:
    picture = np.asarray(Image.open(watched / "first_batch.png"))
    assert picture.shape[1] > 6 * 96
    assert picture.std() > 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim__batch_size": 64}, "optim.batch_size (--batch-size): 64 is not allowed, need at most the 24 samples"),
        ({"optim__accumulate": 3}, "optim.batch_size: 8 in 3 parts (optim.accumulate) on 1 ranks"),
        ({"optim__accumulate": 8}, "at least 16: a part of one clip has no negatives"),
        ({"data__split_column": "nosuch"}, "'nosuch' is not in the shards"),
        ({"data__split_column": "split", "data__part": "validation"}, "no video of split is in 'validation'"),
        ({"run__precision": "half"}, "precision"),
    ],
)
def test_bad_input_is_told_before_the_first_step(
    changes: dict[str, object], words: str, few_shards: Path, tmp_path: Path
) -> None:
    result = pretrain(few_shards, tmp_path / "run", **changes)
    assert result.exit_code == 1
    assert words in result.output
    assert not (tmp_path / "run").exists()


def test_a_single_video_has_no_negatives(few_shards: Path, tmp_path: Path) -> None:
    from cmd_extract.shard.reader import ShardSet
    from cmd_train.config import build_config
    from cmd_train.distributed.process_group import process_group
    from cmd_train.engine.readiness import check_before_start

    (entry, *_) = ShardSet(few_shards).videos
    with (
        process_group("cpu") as placement,
        pytest.raises(ValueError, match=f"{entry.video_id}; a clip has no negatives"),
    ):
        check_before_start(build_config("demo"), [entry], "hash", placement)
    with process_group("cpu") as placement, pytest.raises(ValueError, match="knn_epochs: need at least 2 labels"):
        check_before_start(build_config("demo", {"run.knn_epochs": 1}), [entry, entry], "hash", placement)


def test_other_and_mixed_shards_are_refused(watched: Path, few_shards: Path, tmp_path: Path) -> None:
    import shutil

    import h5py

    from cmd_extract import schema

    shards = tmp_path / "shards"
    shutil.copytree(few_shards, shards)
    index = json.loads((shards / schema.INDEX_NAME).read_text())
    (shards / schema.INDEX_NAME).write_text(json.dumps(index | {"shards": index["shards"][:-1]}))
    result = pretrain(shards, watched, optim__epochs=3, run__knn_epochs=1)
    assert result.exit_code == 1
    assert "was trained on other shards" in result.output
    (shards / schema.INDEX_NAME).write_text(json.dumps(index))
    mixed = tmp_path / "mixed"
    shutil.copytree(shards, mixed)
    shutil.copy(mixed / index["shards"][0]["name"], mixed / index["shards"][1]["name"])
    result = pretrain(mixed, tmp_path / "run")
    assert result.exit_code == 1
    assert "shard-00001.h5: made of other manifest rows" in result.output
    with h5py.File(shards / index["shards"][1]["name"], "r+") as file:
        file.attrs[schema.ATTR_CONFIG_HASH] = "other"
    result = pretrain(shards, tmp_path / "run")
    assert result.exit_code == 1
    assert "shard-00001.h5: made with another configuration" in result.output
    assert not (tmp_path / "run").exists()
