"""Training and evaluation on several folders of shards."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from cmd_eval.cli.main import main as eval_main
from cmd_eval.features.store import read_features
from cmd_eval.results.files import read_result
from cmd_extract.cli.main import main as extract_main
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.errors import ShardError
from cmd_extract.schema import is_relabeled
from cmd_extract.shard.folders import JoinedShardSet, join_paths, open_folders, split_paths
from cmd_extract.shard.reader import ShardSet
from cmd_extract.synthetic.dataset import SyntheticConfig, synthesize
from cmd_train.checkpoints.files import load_checkpoint
from cmd_train.cli.main import main as train_main
from tests.command_line import call, outcome
from tests.integration.cmd_train.finetuning import settings as finetune_settings
from tests.integration.cmd_train.training import options, same, weights

QUICK = ("--workers", 0, "--device", "cpu")


def extract(manifest: Path, out: Path, *words: str) -> Path:
    code, output = outcome(extract_main, "run", manifest, out, "--videos-per-shard", 3, *words)
    assert code == 0, output
    return out


@pytest.fixture(scope="module")
def more_shards(tmp_path_factory: pytest.TempPathFactory, ffmpeg: FfmpegBinary) -> Path:
    """Four further videos, two of which have the ids of videos in ``few_shards``."""
    folder = tmp_path_factory.mktemp("more")
    config = SyntheticConfig(videos_per_combination=2, frames=24, motions=("left", "right"), contexts=("grass",))
    manifest = synthesize(config, folder / "videos", ffmpeg_binary=ffmpeg.path, workers=1, progress=lambda *_: None)
    return extract(manifest, folder / "shards")


@pytest.fixture(scope="module")
def other_shards(more_shards: Path) -> Path:
    return extract(more_shards.parent / "videos" / "manifest.csv", more_shards.parent / "others", "--gop", "10")


@pytest.fixture(scope="module")
def trained(few_shards: Path, more_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    result = train(few_shards, more_shards, run)
    assert result.exit_code == 0, result.output
    return run


def train(*arguments: object, **changes: object) -> Result:
    given = {"optim__epochs": 2, "data__workers": 1, "run__checkpoint_epochs": 1} | changes
    words = options(all_videos=False, **given)
    return call(train_main, "pretrain", *arguments, *words, "--split-column", "split")


def test_videos_of_all_folders_are_read_from_their_own_shards(few_shards: Path, more_shards: Path) -> None:
    folders = (few_shards, more_shards)
    joined = pickle.loads(pickle.dumps(open_folders(folders)))
    sets = enumerate(map(ShardSet, folders), start=1)
    apart = [(number, shards, video) for number, shards in sets for video in shards.videos]
    assert len({video.video_id for video in joined.videos}) == len(joined.videos) == 28
    assert len({video.video_id for *_, video in apart}) == 26, "some ids are in both folders"
    for entry, (number, shards, video) in zip(joined.videos, apart, strict=True):
        assert entry.video_id == f"{number}/{video.video_id}"
        assert (entry.label, entry.group, entry.splits) == (video.label, video.group, video.splits)
        assert joined.frame_jpegs(entry, [3, 1]) == shards.frame_jpegs(video, [3, 1])
        assert joined.keyframe_jpeg(entry, 1) == shards.keyframe_jpeg(video, 1)
        assert np.array_equal(joined.motion(entry, 2, 9).grid_quarter_px, shards.motion(video, 2, 9).grid_quarter_px)
        assert np.array_equal(joined.pts_seconds(entry), shards.pts_seconds(video))
        assert np.array_equal(joined.frame_types(entry), shards.frame_types(video))
    assert joined.header == ShardSet(few_shards).header
    hashes = {open_folders(given).data_hash for given in (folders, folders[::-1], few_shards, [more_shards])}
    assert len(hashes) == 4
    assert open_folders(more_shards).data_hash == ShardSet(more_shards).data_hash


def test_a_video_is_in_no_part_of_a_split_that_only_another_folder_has(few_shards: Path, more_shards: Path) -> None:
    without = more_shards.parent / "unsplit"
    manifest = more_shards.parent / "videos" / "unsplit.csv"
    rows = (more_shards.parent / "videos" / "manifest.csv").read_text().splitlines()
    keep = [number for number, name in enumerate(rows[0].split(",")) if name != "split"]
    manifest.write_text("\n".join(",".join(np.array(row.split(","))[keep]) for row in rows) + "\n")
    joined = JoinedShardSet([few_shards, extract(manifest, without)])
    assert is_relabeled(joined.data_hash, open_folders([few_shards, more_shards]).data_hash), "the same shards"
    assert not is_relabeled(joined.data_hash, ShardSet(few_shards).data_hash)
    assert [video.splits for video in joined.videos[-4:]] == [{"split": ""}] * 4


def test_a_run_on_two_folders_is_continued_bit_for_bit(
    trained: Path, few_shards: Path, more_shards: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(trained)
    assert checkpoint.config["data_hash"] == open_folders((few_shards, more_shards)).data_hash
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(load_checkpoint(run).path)
    again = train(few_shards, more_shards, run)
    assert again.exit_code == 0, again.output
    assert "14 of 28 videos" in again.output
    assert f"Continuing after step 1 of {checkpoint.step}" in again.output
    assert same(weights(run), checkpoint.weights)


@pytest.mark.parametrize("order", ["few", "more few"])
def test_a_run_is_continued_on_the_same_folders_only(
    order: str, trained: Path, few_shards: Path, more_shards: Path
) -> None:
    folders = {"few": few_shards, "more": more_shards}
    refused = train(*(folders[name] for name in order.split()), trained)
    assert refused.exit_code == 1
    assert "contains a run on different shards" in refused.output


@pytest.mark.parametrize("command", ["pretrain", "embed"])
def test_folders_with_other_settings_are_refused(
    command: str, trained: Path, few_shards: Path, other_shards: Path, tmp_path: Path
) -> None:
    if command == "pretrain":
        refused = train(few_shards, other_shards, tmp_path / "run")
    else:
        refused = call(eval_main, "embed", trained, few_shards, other_shards, tmp_path / "run", *QUICK)
    assert refused.exit_code == 1
    assert f"{other_shards}: extracted with other settings than {few_shards}: gop 10 instead of 12" in refused.output
    assert not (tmp_path / "run").exists()


def test_a_folder_is_given_once(few_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(few_shards)
    with pytest.raises(ShardError, match=f"link: the same videos as {few_shards}; give each folder once"):
        open_folders((few_shards, tmp_path / "link"))


def test_missing_arguments_are_named(few_shards: Path) -> None:
    for given, name in (([], "SHARDS"), ([few_shards], "RUN_DIR")):
        result = train(*given)
        assert result.exit_code == 2
        assert f"Missing argument '{name}'" in result.output


@pytest.fixture(scope="module")
def embeddings(trained: Path, few_shards: Path, more_shards: Path) -> Path:
    path = trained.parent / "both.h5"
    result = call(eval_main, "embed", trained, few_shards, more_shards, path, "--clips", 1, *QUICK)
    assert result.exit_code == 0, result.output
    return path


def test_features_of_two_folders_are_those_of_each(
    embeddings: Path, trained: Path, few_shards: Path, more_shards: Path, tmp_path: Path
) -> None:
    both = read_features(embeddings)
    assert split_paths(both.provenance.shards) == (few_shards.resolve(), more_shards.resolve())
    assert both.provenance.data_hash == both.provenance.trained_on
    result = call(eval_main, "embed", trained, more_shards, tmp_path / "one.h5", "--clips", 1, *QUICK)
    assert result.exit_code == 0, result.output
    one = read_features(tmp_path / "one.h5")
    assert both.videos.ids[-4:] == tuple(f"2/{video_id}" for video_id in one.videos.ids)
    assert np.array_equal(both.mean_VF[-4:], one.mean_VF)


def test_retrieval_recognizes_the_training_videos_of_both_folders(
    trained: Path, few_shards: Path, more_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.json"
    words = ["--clips", 1, *QUICK, "--split-column", "split", "--test-part", "train", "--train-part", "test"]
    result = call(eval_main, "retrieval", trained, few_shards, more_shards, *words, "--output", out)
    assert result.exit_code == 0, result.output
    assert "trained on 14 of the 14 queries" in result.output
    record = read_result(out, "retrieval")
    assert record["provenance"]["shards"] == join_paths((few_shards, more_shards))
    assert record["splits"][0]["queries"] == 14


def test_search_and_report_find_all_folders(
    embeddings: Path, trained: Path, few_shards: Path, more_shards: Path, tmp_path: Path
) -> None:
    video = next((more_shards.parent / "videos").glob("**/right-*.mp4"))
    words = ["--embeddings", embeddings, "--output", tmp_path / "s.png", "--count", 1, "--device", "cpu"]
    found = call(eval_main, "search", video, *words)
    assert found.exit_code == 0, found.output
    assert f"2/{video.stem}" in found.output
    refused = call(eval_main, "search", video, *words, "--shards", few_shards)
    assert refused.exit_code == 1
    assert "not the shards of" in refused.output
    words = ["--output", tmp_path / "report.html", "--shards", few_shards, "--shards", more_shards]
    written = call(eval_main, "report", trained, *words)
    assert written.exit_code == 0, written.output
    page = (tmp_path / "report.html").read_text()
    assert f"{len(open_folders((few_shards, more_shards)).videos)} videos, " in page
    assert str(more_shards) not in page, "the page has no absolute paths"


def test_baseline_and_recognition_use_all_folders(few_shards: Path, more_shards: Path, tmp_path: Path) -> None:
    result = call(eval_main, "baseline", few_shards, more_shards, "--output", tmp_path / "b.json")
    assert result.exit_code == 0, result.output
    assert read_result(tmp_path / "b.json", "retrieval")["splits"][0]["queries"] == 14
    run = tmp_path / "tuned"
    words = finetune_settings(optim__epochs=1)
    result = call(train_main, "finetune", few_shards, more_shards, run, "--from", "scratch", *words)
    assert result.exit_code == 0, result.output
    words = ["--more-shards", more_shards, "--clips", 1, *QUICK, "--output", tmp_path / "r.json"]
    result = call(eval_main, "recognition", run, few_shards, *words)
    assert result.exit_code == 0, result.output
    videos = [row["video"] for row in read_result(tmp_path / "r.json", "recognition")["splits"][0]["videos"]]
    assert len(videos) == 14
    assert sum(name.startswith("2/") for name in videos) == 2


def test_paths_are_recorded_like_those_of_a_search_path(tmp_path: Path) -> None:
    given = (tmp_path / "a", tmp_path / f"b{os.pathsep}c")
    assert split_paths(join_paths(given[0])) == given[:1]
    given[1].mkdir()
    assert split_paths(join_paths(given[1])) == given[1:]
