from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cmd_extract.shard.index import ShardIndex
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import load_checkpoint
from cmd_train.cli.main import main
from cmd_train.config import build_config
from cmd_train.distributed.process_group import process_group
from cmd_train.engine.setup import preflight
from tests.indexes import update_index
from tests.integration.cmd_train.training import finish, launch, metrics, options, same, weights


def pretrain(shards: Path, run_dir: Path, *, all_videos: bool = True, **changes: object) -> Result:
    words = ["pretrain", str(shards), str(run_dir), *options(all_videos=all_videos, **changes)]
    return CliRunner().invoke(main, words)


@pytest.fixture(scope="module")
def monitored(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("monitored") / "run"
    monitoring = {"run__knn_epochs": 1, "run__logger": "tensorboard", "run__batch_picture": "true"}
    result = pretrain(few_shards, run_dir, optim__epochs=3, **monitoring)
    assert result.exit_code == 0, result.output
    return run_dir


def test_monitoring_does_not_change_the_weights(monitored: Path, few_shards: Path, tmp_path: Path) -> None:
    result = pretrain(few_shards, tmp_path / "run", optim__epochs=3)
    assert result.exit_code == 0, result.output
    assert same(weights(monitored), weights(tmp_path / "run"))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"checkpoints", "config.json", "finished", "metrics.jsonl"}


def test_retrieval_is_logged_and_selects_the_best_checkpoint(monitored: Path) -> None:
    lines = metrics(monitored)
    seen = {line["step"]: line["retrieval_r1"] for line in lines if "retrieval_r1" in line}
    assert list(seen) == [3, 6, 9]
    assert all(0 <= value <= 1 for value in seen.values())
    best = load_checkpoint(monitored / "checkpoints" / "best").step
    assert best == max(seen, key=lambda step: (seen[step], -step))


@pytest.mark.slow
def test_ranks_share_the_retrieval(few_shards: Path, tmp_path: Path) -> None:
    process = launch(2, [few_shards, tmp_path / "run", *options(optim__epochs=1, run__knn_epochs=1)])
    output = finish(process)
    assert process.returncode == 0, output
    several = metrics(tmp_path / "run")[-1]
    # Evaluate the same network in a single process.
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
    with process_group("cpu") as context:
        alone = RetrievalMonitor(shards, shards.videos, config, context)(model)
    assert model.training
    assert alone == {name: several[name] for name in ("retrieval_r1", "retrieval_r5")}


def test_tensorboard_has_every_step(monitored: Path) -> None:
    events = EventAccumulator(str(monitored / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"run/loss", "run/lr", "run/grad_norm", "run/clips_per_second", "run/data_wait_share"} <= tags
    assert {"context/loss", "context/top1", "motion/top1", "retrieval/r1"} <= tags
    lines = [json.loads(line) for line in (monitored / "metrics.jsonl").read_text().splitlines()]
    assert [e.step for e in events.Scalars("run/loss")] == [line["step"] for line in lines]
    np.testing.assert_allclose(
        [e.value for e in events.Scalars("run/loss")], [line["loss"] for line in lines], rtol=1e-6
    )


def test_first_batch_is_drawn(monitored: Path) -> None:
    picture = np.asarray(Image.open(monitored / "first_batch.png"))
    assert picture.shape[1] > 6 * 96
    assert picture.std() > 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim__batch_size": 64}, "optim.batch_size (--batch-size): must be at most the 24 samples"),
        (
            {"optim__accumulate": 3},
            "optim.batch_size: must be a multiple of 3 and at least 6, got 8",
        ),
        ({"optim__accumulate": 8}, "at least 16, got 8; the number of ranks is 1, optim.accumulate is 8"),
        ({"data__split_column": "nosuch"}, "'nosuch' is not in the shards"),
        (
            {"data__split_column": "split", "data__train_part": "validation"},
            "'validation' of split column 'split'",
        ),
        ({"run__precision": "half"}, "precision"),
    ],
)
def test_errors_name_invalid_input_before_the_first_step(
    changes: dict[str, object], words: str, few_shards: Path, tmp_path: Path
) -> None:
    result = pretrain(few_shards, tmp_path / "run", all_videos="data__split_column" not in changes, **changes)
    assert result.exit_code == 1
    assert words in result.output
    assert not (tmp_path / "run").exists()


def test_single_video_is_rejected(few_shards: Path) -> None:
    videos = ShardSet(few_shards).videos[:1]
    with (
        process_group("cpu") as context,
        pytest.raises(ValueError, match=rf"only one video to train on \({videos[0].video_id}\)"),
    ):
        preflight(build_config("demo"), videos, "hash", context)
    with (
        process_group("cpu") as context,
        pytest.raises(ValueError, match="knn_epochs: needs videos"),
    ):
        preflight(build_config("demo", {"run.knn_epochs": 1}), videos.select([0, 0]), "hash", context)


def test_different_and_mixed_shards_are_rejected(monitored: Path, few_shards: Path, tmp_path: Path) -> None:
    import shutil

    import h5py

    from cmd_extract import schema

    shards = tmp_path / "shards"
    shutil.copytree(few_shards, shards)
    update_index(shards, len(ShardIndex(shards)) - 1)
    result = pretrain(shards, monitored, optim__epochs=3, run__knn_epochs=1)
    assert result.exit_code == 1
    assert "contains a run on different shards" in result.output
    relabeled = tmp_path / "relabeled"
    shutil.copytree(few_shards, relabeled)
    update_index(relabeled, group=["one"] * ShardIndex(relabeled).row_count)
    result = pretrain(relabeled, monitored, optim__epochs=3, run__knn_epochs=1)
    assert result.exit_code == 1
    assert "contains a run on these shards before they were relabeled" in result.output
    mixed = tmp_path / "mixed"
    shutil.copytree(few_shards, mixed)
    shutil.copy(mixed / "shard-00000.h5", mixed / "shard-00001.h5")
    result = pretrain(mixed, tmp_path / "run")
    assert result.exit_code == 1
    assert "shard-00001.h5: manifest rows do not match" in result.output
    with h5py.File(mixed / "shard-00001.h5", "r+") as file:
        file.attrs[schema.ATTR_CONFIG_HASH] = "other"
    result = pretrain(mixed, tmp_path / "run")
    assert result.exit_code == 1
    assert "shard-00001.h5: configuration does not match" in result.output
