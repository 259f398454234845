from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from cmd_eval.cli.main import main
from cmd_eval.features.embed import load_backbone
from cmd_eval.features.source import FeatureSource, open_features
from cmd_eval.features.store import read_features
from cmd_extract.shard.reader import ShardSet
from cmd_train.augment.apply import center_crop
from cmd_train.checkpoints.files import load_checkpoint, save_checkpoint
from cmd_train.config import build_config, config_from_dict
from cmd_train.data.sampling import evaluation_clips
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
plain = cmd_eval.features.embed.PartialFeatures.write
def slow(self, row, feature):
    plain(self, row, feature)
    print(row + 1, flush=True)
    time.sleep(0.05)
cmd_eval.features.embed.PartialFeatures.write = slow
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
    # Two processes compute the rest, which starts in the middle of a batch.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--local-addr", "127.0.0.1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--no-python", sys.executable, "-P", "-c"]
    command += ["from cmd_eval.cli.main import main; main()", "embed", str(run_dir), str(few_shards), str(out)]
    command += ["--clips", "3", *map(str, QUICK)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("features of 24 videos") == 1, "the main process reports"
    assert values(out) == values(embeddings)
    assert list(tmp_path.iterdir()) == [out]


def test_other_commands_run_in_one_process(
    run_dir: Path, few_shards: Path, embeddings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    for command in (
        ("retrieval", run_dir, few_shards),
        ("probe", embeddings),
        ("recognition", run_dir, few_shards),
        ("search", "x", "--embeddings", embeddings),
    ):
        result = call(*command)
        assert result.exit_code == 1
        assert "started in 2 processes by torchrun or srun; only `cmd-eval embed` uses several" in result.output


def test_batches_of_clips_from_several_videos_give_the_same_features(
    embeddings: Path, run_dir: Path, few_shards: Path, tmp_path: Path
) -> None:
    # The features of one clip at a time.
    checkpoint, shards = load_checkpoint(run_dir), ShardSet(few_shards)
    config = config_from_dict(checkpoint.config["settings"])
    backbone = load_backbone(checkpoint, config).eval()
    expected = []
    for entry in shards.videos:
        for frames in evaluation_clips(entry.frame_count, config.sampling, 3):
            images = [Image.open(BytesIO(jpeg)).convert("RGB") for jpeg in shards.frame_jpegs(entry, frames)]
            clip_u8 = torch.from_numpy(np.stack([np.asarray(image) for image in images]))[None]
            with torch.no_grad():
                expected.append(backbone(center_crop(clip_u8, config.model.crop_size)).pooled_BC[0].numpy())
    expected_VNF = np.stack(expected).reshape(24, 3, 64)
    np.testing.assert_allclose(read_features(embeddings).clips_VNF, expected_VNF, atol=1e-5)
    for batch_size in (2, 7, 500):
        out = tmp_path / f"{batch_size}.h5"
        result = call("embed", run_dir, few_shards, out, "--clips", 3, "--batch-size", batch_size, *QUICK)
        assert result.exit_code == 0, result.output
        np.testing.assert_allclose(read_features(out).clips_VNF, expected_VNF, atol=1e-5)
    half = tmp_path / "half.h5"
    assert call("embed", run_dir, few_shards, half, "--clips", 3, "--precision", "bf16", *QUICK).exit_code == 0
    found = read_features(half)
    assert found.provenance.precision == "bf16"
    error = np.abs(found.clips_VNF - expected_VNF).max() / np.abs(expected_VNF).max()
    assert 1e-4 < error < 0.05
    refused = call("embed", run_dir, few_shards, half, "--clips", 3, *QUICK)
    assert "precision bf16, expected float32" in refused.output


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


def test_settings_do_not_overwrite_each_others_features(few_shards: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", few_shards)
    common = ("retrieval", run, few_shards, *SPLIT, *QUICK)
    data = ShardSet(few_shards).data_hash[:8]
    for options in (("--clips", 1), ("--clips", 2), ("--clips", 2, "--precision", "bf16"), ("--clips", 1)):
        result = call(*common, *options)
        assert result.exit_code == 0, result.output
    kept = sorted(path.name for path in (run / "eval").iterdir())
    # Results with other clips, other parts or an earlier checkpoint have their own files.
    settings = ("1-clips", "2-clips", "2-clips-bf16")
    embeddings = [f"embeddings-{data}-v1-{words}.h5" for words in settings]
    assert kept == sorted([*embeddings, *(f"retrieval-split-label-{words}.json" for words in settings)])
    assert [read_features(run / "eval" / name).provenance.clips for name in embeddings] == [1, 2, 2]
    assert call(*common, "--clips", 2, "--test-part", "train", "--train-part", "test").exit_code == 0
    assert (run / "eval" / "retrieval-split-train-in-test-label-2-clips.json").is_file()
    shutil.copytree(run / "checkpoints" / "step-00000003", run / "checkpoints" / "step-00000009")
    earlier = ("retrieval", run / "checkpoints" / "step-00000003", *common[2:], "--clips", 2)
    assert call(*earlier).exit_code == 0
    assert (run / "eval" / "retrieval-split-label-step-00000003-2-clips.json").is_file()
    assert (run / "eval" / f"embeddings-{data}-v1-step-00000003-2-clips.h5").is_file()


def test_cached_features_of_other_weights_are_recomputed_only_on_request(few_shards: Path, tmp_path: Path) -> None:
    command = ("retrieval", tmp_path / "run", few_shards, *SPLIT, *QUICK, "--clips", 1)
    make_run(tmp_path / "run", few_shards)
    assert call(*command).exit_code == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    make_run(tmp_path / "run", few_shards, run__seed=5)
    refused = call(*command)
    assert refused.exit_code == 1
    assert "--fresh" in refused.output
    assert call(*command, "--fresh").exit_code == 0


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which not even root can create files")
def test_a_run_folder_that_cannot_be_written_is_noticed_first(
    embeddings: Path, few_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", few_shards)
    features = tmp_path / "features" / "f.h5"
    assert call("embed", run, few_shards, features, "--clips", 1, *QUICK).exit_code == 0
    (run / "eval").symlink_to("/proc/self")
    # The result goes beside the features file, with a note.
    beside = call("retrieval", features, *SPLIT)
    assert beside.exit_code == 0, beside.output
    assert f"{run / 'eval'} cannot be written to: the result goes to {features.parent}" in beside.output.replace(
        "\n", ""
    )
    assert (features.parent / "retrieval-split-label-1-clips.json").is_file()
    # Nothing is computed before the error.
    for name in ("embed.embed_to_file", "source.embed_to_file"):
        monkeypatch.setattr(f"cmd_eval.features.{name}", computed_again)
    monkeypatch.setattr("cmd_eval.tasks.run_retrieval.run_retrieval", computed_again)
    for arguments, remedy in (
        (("retrieval", run, few_shards, *SPLIT, "--clips", 1), "--eval-dir"),
        (("retrieval", features, *SPLIT, "--output", "/proc/self/x.json"), "--output"),
        (("decoupling", few_shards, "--both", run, *SPLIT), "--output"),
        (("embed", run, few_shards, "/proc/self/x.h5"), "choose another file"),
        (("baseline", few_shards, *SPLIT, "--output", "/proc/self/x.json"), "--output"),
    ):
        refused = call(*arguments, *(QUICK if arguments[0] in ("embed", "decoupling") else ()))
        assert refused.exit_code == 1, arguments
        assert "cannot be written to" in refused.output
        assert remedy in refused.output
    monkeypatch.undo()
    # A folder of one's own.
    own = tmp_path / "own"
    result = call("retrieval", run, few_shards, *SPLIT, "--clips", 1, "--eval-dir", own, *QUICK)
    assert result.exit_code == 0, result.output
    data = ShardSet(few_shards).data_hash[:8]
    assert sorted(path.name for path in own.iterdir()) == [
        f"embeddings-{data}-v1-1-clips.h5",
        "retrieval-split-label-1-clips.json",
    ]


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
    assert [name.split("-", 3)[3] for name in files] == ["2-clips.h5", "directions-2-clips.h5", "grid-2-clips.h5"]
    command = ("retrieval", run_dir, few_shards, "--clips", 2, *SPLIT, "--standardize", *QUICK)
    assert call(*command).exit_code == 0
    record = json.loads((run_dir / "eval" / "retrieval-split-label-standardized-2-clips.json").read_text())
    assert record["provenance"]["standardized"] is True
    refused = call("retrieval", run_dir / "eval" / files[0], *SPLIT, "--readout", "grid")
    assert refused.exit_code == 1
    assert "allow the readouts mean, ordered, not 'grid'" in refused.output


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


def test_features_of_another_model_are_evaluated_like_our_own(
    embeddings: Path, few_shards: Path, tmp_path: Path
) -> None:
    exported = call("export-features", embeddings, tmp_path / "other.npy", "--clips")
    assert exported.exit_code == 0, exported.output
    out = tmp_path / "other.h5"
    files = (tmp_path / "other.npy", tmp_path / "other.csv")
    imported = call("import-features", *files, out, "--shards", few_shards)
    assert imported.exit_code == 0, imported.output
    assert f"{out}: features of 24 videos, 3 clips per video, 64 values each" in imported.output
    for command in (("retrieval", *SPLIT), ("probe", "--method", "knn", *SPLIT)):
        records = []
        for source in (embeddings, out):
            result = call(command[0], source, *command[1:], "--output", tmp_path / "result.json")
            assert result.exit_code == 0, result.output
            records.append(json.loads((tmp_path / "result.json").read_text()))
        assert records[0]["splits"] == records[1]["splits"]
        assert records[1]["provenance"]["features"] == "other"
        assert "other: imported features; the training data of their model are unknown" in records[1]["notes"]
    # Nothing can be embedded by an unknown model, but its videos can be queries.
    query = read_features(out).videos.ids[5]
    video = next((few_shards.parent / "videos").glob("**/up-*.mp4"))
    refused = call("search", video, "--embeddings", out)
    assert "contains other features, not those of a checkpoint" in refused.output
    found = [call("search", query, "--embeddings", path, "--output", tmp_path / "s.png") for path in (embeddings, out)]
    assert [result.exit_code for result in found] == [0, 0]
    assert found[0].stdout == found[1].stdout
    lines = found[0].stdout.splitlines()
    assert len(lines) == 6
    assert query not in "".join(line.split()[1] for line in lines[:5])
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.height > 6 * ShardSet(few_shards).header.frame_height
    unknown = call("search", "nobody", "--embeddings", out)
    assert f"nobody: neither a video file nor the id of a video in {out}" in unknown.output


def test_features_imported_without_shards(embeddings: Path, few_shards: Path, tmp_path: Path) -> None:
    assert call("export-features", embeddings, tmp_path / "f.npy").exit_code == 0
    out, table = tmp_path / "out.h5", tmp_path / "f.csv"
    assert call("import-features", tmp_path / "f.npy", table, out).exit_code == 0
    assert call("retrieval", out, *SPLIT).exit_code == 0
    assert (tmp_path / "retrieval-split-label-f.json").is_file()
    ids = read_features(out).videos.ids
    picture = tmp_path / "search.png"
    found = call("search", ids[0], "--embeddings", out, "--count", 2, "--output", picture)
    assert found.exit_code == 0, found.output
    assert "no picture:" in found.output
    assert not picture.exists()
    assert call("search", ids[0], "--embeddings", out, "--shards", few_shards, "--output", picture).exit_code == 0
    assert picture.exists()
    lines = table.read_text().splitlines(keepends=True)
    for rows, message in (
        (lines[:-1], "f.csv: 23 videos, but"),
        ([*lines[:-1], lines[1]], f"line 25: id '{ids[0]}' is also in line 2"),
        ([lines[0], "x" + lines[1], *lines[2:]], f"f.csv: 1 videos are not in {few_shards}: x{ids[0]}"),
    ):
        table.write_text("".join(rows))
        refused = call("import-features", tmp_path / "f.npy", table, tmp_path / "bad.h5", "--shards", few_shards)
        assert refused.exit_code == 1
        assert message in refused.output
        assert len(refused.output.strip().splitlines()) == 1
    assert not (tmp_path / "bad.h5").exists()
