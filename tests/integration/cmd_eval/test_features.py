from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from cmd_eval.cli.main import main
from cmd_eval.features.source import FeatureSource, open_features
from cmd_eval.features.store import read_features
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import load_checkpoint, save_checkpoint
from cmd_train.config import build_config
from cmd_train.models.build import build_model
from tests.command_line import call as invoke
from tests.integration.cmd_train.training import SIZES

QUICK = ("--workers", 0, "--device", "cpu")
SPLIT = ("--split-column", "split")


def call(*arguments: object) -> Result:
    return invoke(main, *arguments)


def make_run(run_dir: Path, shards: Path, **changes: object) -> Path:
    """A run folder with a checkpoint, without training."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    config = build_config("demo", SIZES | {"data.split_column": "split"} | changes)
    model = build_model(config.model, seed=config.run.seed)
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    record = {"settings": config.as_dict(), "data_hash": ShardSet(shards).data_hash}
    save_checkpoint(run_dir, step=3, weights=model.state_dict(), state={"recent_metrics": {}}, config=record)
    return run_dir


@pytest.fixture(scope="module")
def run_dir(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("features") / "run", few_shards)


@pytest.fixture(scope="module")
def embeddings(run_dir: Path, few_shards: Path) -> Path:
    path = run_dir.parent / "embeddings.h5"
    result = call("embed", run_dir, few_shards, path, "--clips", 3, *QUICK)
    assert result.exit_code == 0, result.output
    return path


def values(path: Path) -> dict[str, bytes]:
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[:].tobytes()}) if hasattr(item, "dtype") else None)
    return found


def test_embeddings_contain_every_video_and_their_provenance(embeddings: Path, run_dir: Path, few_shards: Path) -> None:
    features, shards = read_features(embeddings), ShardSet(few_shards)
    assert features.videos.ids == tuple(entry.video_id for entry in shards.videos)
    assert features.clips_VNF is not None
    assert features.clips_VNF.shape == (24, 3, 64)
    assert np.isfinite(features.clips_VNF).all()
    source, checkpoint = features.provenance, load_checkpoint(run_dir)
    assert source.checkpoint_sha256 == checkpoint.weights_hash
    assert (source.data_hash, source.settings) == (shards.data_hash, checkpoint.config["settings"])
    assert (source.step, source.clips, source.untrained) == (3, 3, False)


def start_embedding(run_dir: Path, shards: Path, out: Path) -> subprocess.Popen[str]:
    # Slowed down, so that the process is killed midway.
    program = """
import sys, time, torch
torch.set_num_threads(1)
import cmd_eval.features.embed
plain = cmd_eval.features.embed.PartialFeatures.append
def slow(self, feature):
    plain(self, feature)
    print(self.done, flush=True)
    time.sleep(0.05)
cmd_eval.features.embed.PartialFeatures.append = slow
from cmd_eval.cli.main import main
main()
"""
    command = [sys.executable, "-c", program, "embed", str(run_dir), str(shards), str(out), "--clips", "3"]
    command += ["--workers", "1", "--device", "cpu"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_a_killed_embedding_is_continued_with_the_same_result(
    embeddings: Path, run_dir: Path, few_shards: Path, tmp_path: Path
) -> None:
    out, deadline = tmp_path / "killed.h5", time.monotonic() + 120
    reached = []
    for stop_at in (5, 14):
        process = start_embedding(run_dir, few_shards, out)
        assert process.stdout is not None
        for line in process.stdout:
            assert time.monotonic() < deadline
            reached.append(int(line))
            if reached[-1] == stop_at:
                break
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert not out.exists()
    assert len(reached) < 24, "the second run continued where the first was killed"
    # The features of the next video are incomplete, as after a kill within a write.
    with h5py.File(out.with_name("killed.h5.partial"), "r+", locking=False) as file:
        file["feature/clips"][reached[-1], 0] = 1.0
    result = call("embed", run_dir, few_shards, out, "--clips", 3, *QUICK)
    assert result.exit_code == 0, result.output
    assert values(out) == values(embeddings)
    assert list(tmp_path.iterdir()) == [out]


def test_other_embeddings_are_rejected_and_kept(embeddings: Path, run_dir: Path, few_shards: Path) -> None:
    before = embeddings.read_bytes()
    for options, words in (
        (("--clips", 2), "clips 3, expected 2"),
        (("--untrained", "--clips", 3), "untrained False, expected True"),
    ):
        result = call("embed", run_dir, few_shards, embeddings, *options, *QUICK)
        assert result.exit_code == 1
        assert words in result.output
    assert call("embed", run_dir, few_shards, embeddings, "--clips", 3, *QUICK).exit_code == 0
    assert embeddings.read_bytes() == before


def test_cached_features_are_recomputed_only_on_request(few_shards: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", few_shards)
    common = ("retrieval", run, few_shards, *SPLIT, *QUICK)
    assert call(*common, "--clips", 1).exit_code == 0
    refused = call(*common, "--clips", 2)
    assert refused.exit_code == 1
    assert "--fresh" in refused.output
    assert call(*common, "--clips", 2, "--fresh").exit_code == 0
    kept = sorted(path.name for path in (run / "eval").iterdir())
    # Results with other clips, other parts or an earlier checkpoint have their own files.
    found = [f"retrieval-split-label-{clips}-clips.json" for clips in (1, 2)]
    assert kept == [f"embeddings-{ShardSet(few_shards).data_hash[:8]}.h5", *found]
    assert call(*common, "--clips", 2, "--test-part", "train", "--train-part", "test").exit_code == 0
    assert (run / "eval" / "retrieval-split-train-in-test-label-2-clips.json").is_file()
    shutil.copytree(run / "checkpoints" / "step-00000003", run / "checkpoints" / "step-00000009")
    earlier = ("retrieval", run / "checkpoints" / "step-00000003", *common[2:], "--clips", 2)
    assert call(*earlier).exit_code == 0
    assert (run / "eval" / "retrieval-split-label-step-00000003-2-clips.json").is_file()
    assert (run / "eval" / f"embeddings-{ShardSet(few_shards).data_hash[:8]}-step-00000003.h5").is_file()


def test_probe_and_leave_one_out_on_features(embeddings: Path, run_dir: Path) -> None:
    result = call("probe", embeddings, *SPLIT, "--method", "knn", "--confusion")
    assert result.exit_code == 0, result.output
    record = json.loads((run_dir / "eval" / "probe-knn-split-label-3-clips.json").read_text())
    assert record["kind"] == "probe"
    assert record["provenance"]["checkpoint_sha256"] == load_checkpoint(run_dir).weights_hash
    result = call("retrieval", embeddings, "--leave-one-out", "--target", "group", "--per-class")
    assert result.exit_code == 0, result.output
    record = json.loads((run_dir / "eval" / "retrieval-leave-one-out-group-3-clips.json").read_text())
    assert (record["splits"][0]["queries"], record["splits"][0]["gallery"]) == (24, 23)


def test_the_baseline_can_be_probed(few_shards: Path, tmp_path: Path) -> None:
    features, output = tmp_path / "motion.h5", tmp_path / "baseline.json"
    result = call("baseline", few_shards, *SPLIT, "--write-features", features, "--output", output)
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())
    assert record["provenance"]["features"] == "motion descriptor"
    assert record["splits"][0]["recall"]["R@1"]["value"] == 1.0, "motion vectors distinguish left and up"
    again = call("retrieval", features, *SPLIT, "--output", tmp_path / "again.json")
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "again.json").read_text())["splits"] == record["splits"]
    probed = call("probe", features, *SPLIT)
    assert probed.exit_code == 0, probed.output
    searched = call("search", next(iter(few_shards.glob("*.h5"))), "--embeddings", features)
    assert searched.exit_code == 1, searched.output
    assert "contains motion grids features, not those of a checkpoint" in searched.output
    assert (
        json.loads((tmp_path / "probe-logistic-split-label-motion-descriptor.json").read_text())["splits"][0]["top1"][
            "value"
        ]
        == 1.0
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("retrieval", "EMBEDDINGS", "SHARDS", *SPLIT), "remove SHARDS"),
        (("retrieval", "EMBEDDINGS", "--untrained"), "--untrained and --fresh"),
        (("retrieval", "EMBEDDINGS", "--clips", "5"), "contains 3 clips per video, not 5"),
        (("retrieval", "RUN"), "SHARDS is required"),
        (("retrieval", "EMBEDDINGS", "--split-column", "split9"), "split9"),
        (("probe", "EMBEDDINGS", *SPLIT, "--test-part", "val"), "'val'"),
        (("probe", "EMBEDDINGS", *SPLIT, "--test-part", "train"), "is both a query and in the gallery"),
        (("decoupling", "SHARDS", "--motion", "RUN", *SPLIT), "trained for context and motion"),
    ],
)
def test_user_errors_are_reported_in_one_line(
    arguments: tuple[str, ...], words: str, embeddings: Path, run_dir: Path, few_shards: Path
) -> None:
    places = {"EMBEDDINGS": embeddings, "RUN": run_dir, "SHARDS": few_shards}
    result = call(*(places.get(word, word) for word in arguments))
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output


def test_search_finds_the_video_itself_first(
    embeddings: Path, few_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    video = next((few_shards.parent / "videos").glob("**/up-*.mp4"))
    result = call("search", video, "--embeddings", embeddings, "--count", 3, "--device", "cpu")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert video.stem in lines[0]
    assert "similarity 1.000" in lines[0]
    assert "(the same file)" in lines[0]
    with Image.open(tmp_path / "search.png") as picture:
        header = ShardSet(few_shards).header
        assert picture.width > 6 * header.frame_width
        assert picture.height > 4 * header.frame_height
        # The first result is the query itself, so its frames appear twice.
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    frame = pixels[33 : 33 + header.frame_height, 10 : 10 + header.frame_width]
    shift = header.frame_height + 15 + 4 * 4
    below = pixels[33 + shift : 33 + shift + header.frame_height, 10 : 10 + header.frame_width]
    assert frame.std() > 0
    np.testing.assert_array_equal(frame, below)


def test_search_works_in_a_job_array(
    embeddings: Path, few_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The environment of the batch script of one of several tasks, which may have nothing to do with extraction.
    array = {"ID": "6", "COUNT": "5", "MIN": "2", "MAX": "10", "STEP": "2"}
    job = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    job |= {"SLURM_NTASKS": "2", "SLURM_CPUS_ON_NODE": "1"}
    for name, value in (job | {f"SLURM_ARRAY_TASK_{name}": value for name, value in array.items()}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    video = next((few_shards.parent / "videos").glob("**/up-*.mp4"))
    result = call("search", video, "--embeddings", embeddings, "--count", 1, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "(the same file)" in result.stdout.splitlines()[0]


def test_search_reports_why_it_failed(embeddings: Path, few_shards: Path, run_dir: Path, tmp_path: Path) -> None:
    bad = tmp_path / "notes.mp4"
    bad.write_text("no video")
    video = next((few_shards.parent / "videos").glob("**/up-*.mp4"))
    moved = make_run(tmp_path / "other", few_shards, run__seed=5)
    picture = tmp_path / "search.png"
    for name, options, words in (
        (bad, (), "notes.mp4: cannot be extracted (probe: "),
        (video, ("--output", "x.gif"), "must end in"),
        (video, ("--checkpoint", moved), "not the checkpoint of"),
        (video, ("--shards", tmp_path), "no index.json"),
    ):
        result = call("search", name, "--embeddings", embeddings, "--output", picture, *options)
        assert result.exit_code == 1
        assert words in result.output
        assert len(result.output.strip().splitlines()) == 1
    assert not picture.exists()
    # A checkpoint that has moved is found with --checkpoint.
    gone = tmp_path / "moved"
    shutil.copytree(run_dir, gone)
    result = call("search", video, "--embeddings", embeddings, "--output", picture, "--checkpoint", gone)
    assert result.exit_code == 0, result.output


def test_decoupling_compares_networks(run_dir: Path, few_shards: Path, tmp_path: Path) -> None:
    context = make_run(tmp_path / "context", few_shards, model__motion_head=False)
    output = tmp_path / "decoupling.json"
    options = (*SPLIT, "--clips", 1, *QUICK, "--with-grids", "--output", output)
    copy = tmp_path / "both"
    shutil.copytree(run_dir / "checkpoints", copy / "checkpoints")
    result = call("decoupling", few_shards, "--both", copy, "--context", context, *options)
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())
    assert [row["model"] for row in record["rows"]] == ["both heads", "context head only", "motion grids"]
    assert record["rows"][1]["checkpoint_sha256"] == load_checkpoint(context).weights_hash
    for row in record["rows"]:
        for by in ("by_label", "by_context"):
            for figure in (row[by]["retrieval"], row[by]["probe"]):
                assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert record["rows"][2]["by_label"]["retrieval"]["value"] == 1.0
    assert 0.4 < record["chance"]["by_label"]["probe"] < 0.6, "two labels"
    assert 0.1 < record["chance"]["by_context"]["retrieval"] < 0.2, "six contexts"
    assert record["videos"] == {"by_label": 12, "by_context": 24}


def computed_again(*_: object) -> None:
    pytest.fail("features are computed once per kind")


def test_read_outs_change_what_is_compared(run_dir: Path, few_shards: Path) -> None:
    found = {}
    for readout in ("mean", "ordered", "grid", "grid-ordered", "directions"):
        result = call("retrieval", run_dir, few_shards, "--clips", 2, *SPLIT, "--readout", readout, *QUICK)
        assert result.exit_code == 0, result.output
        suffix = "" if readout == "mean" else f"-{readout}"
        record = json.loads((run_dir / "eval" / f"retrieval-split-label{suffix}-2-clips.json").read_text())
        assert record["provenance"]["readout"] == readout
        features = open_features(
            FeatureSource(source=run_dir, shards=few_shards, clips=2, readout=readout), "", computed_again
        )
        found[readout] = features.table_VF
    assert [table.shape[1] for table in found.values()] == [64, 128, 256, 512, 36]
    files = sorted(path.name for path in (run_dir / "eval").glob("embeddings-*.h5"))
    assert [name.split("-", 2)[2:] for name in files] == [["directions.h5"], ["grid.h5"], []]
    command = ("retrieval", run_dir, few_shards, "--clips", 2, *SPLIT, "--standardize", *QUICK)
    assert call(*command).exit_code == 0
    record = json.loads((run_dir / "eval" / "retrieval-split-label-standardized-2-clips.json").read_text())
    assert record["provenance"]["standardized"] is True
    refused = call("retrieval", run_dir / "eval" / files[-1], *SPLIT, "--readout", "grid")
    assert refused.exit_code == 1
    assert "allow the read-outs mean, ordered, not 'grid'" in refused.output


def test_a_features_file_records_its_read_out(run_dir: Path, few_shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    command = ("embed", run_dir, few_shards, path, "--clips", 1, "--readout", "grid-ordered", *QUICK)
    assert call(*command).exit_code == 0
    assert read_features(path).provenance.readout == "grid-ordered"
    other = call(*command[: -len(QUICK) - 1], "grid", *QUICK)
    assert other.exit_code == 1
    assert "readout grid-ordered, expected grid" in other.output


def test_features_of_an_unknown_provenance_are_named(embeddings: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    path.write_bytes(embeddings.read_bytes())
    with h5py.File(path, "r+") as file:
        stored = json.loads(file.attrs["provenance"])
        file.attrs["provenance"] = json.dumps(stored | {"moon": "full"})
    result = call("retrieval", path, *SPLIT)
    assert result.exit_code == 1
    assert "f.h5: not a readable features file" in result.output
