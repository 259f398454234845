"""Computing features with a checkpoint: batches, interruptions, files that are kept and reused."""

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
from PIL import Image

from cmd_eval.features.embed import load_backbone
from cmd_eval.features.source import FeatureSource, open_features
from cmd_eval.features.store import read_features
from cmd_extract.shard.reader import ShardSet
from cmd_train.augment.apply import center_crop
from cmd_train.checkpoints.files import load_checkpoint
from cmd_train.config import config_from_dict
from cmd_train.data.sampling import evaluation_clips
from tests.integration.cmd_eval.checkpoint_runs import QUICK, SPLIT, evaluate, make_run


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
        result = evaluate(*command)
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
        result = evaluate("embed", run_dir, few_shards, out, "--clips", 3, "--batch-size", batch_size, *QUICK)
        assert result.exit_code == 0, result.output
        np.testing.assert_allclose(read_features(out).clips_VNF, expected_VNF, atol=1e-5)
    half = tmp_path / "half.h5"
    assert evaluate("embed", run_dir, few_shards, half, "--clips", 3, "--precision", "bf16", *QUICK).exit_code == 0
    found = read_features(half)
    assert found.provenance.precision == "bf16"
    error = np.abs(found.clips_VNF - expected_VNF).max() / np.abs(expected_VNF).max()
    assert 1e-4 < error < 0.05
    refused = evaluate("embed", run_dir, few_shards, half, "--clips", 3, *QUICK)
    assert "precision bf16, expected float32" in refused.output


def test_other_embeddings_are_rejected_and_kept(embeddings: Path, run_dir: Path, few_shards: Path) -> None:
    before = embeddings.read_bytes()
    for options, words in (
        (("--clips", 2), "clips 3, expected 2"),
        (("--untrained", "--clips", 3), "untrained False, expected True"),
    ):
        result = evaluate("embed", run_dir, few_shards, embeddings, *options, *QUICK)
        assert result.exit_code == 1
        assert words in result.output
    assert evaluate("embed", run_dir, few_shards, embeddings, "--clips", 3, *QUICK).exit_code == 0
    assert embeddings.read_bytes() == before


def test_settings_do_not_overwrite_each_others_features(few_shards: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", few_shards)
    common = ("retrieval", run, few_shards, *SPLIT, *QUICK)
    data = ShardSet(few_shards).data_hash[:8]
    for options in (("--clips", 1), ("--clips", 2), ("--clips", 2, "--precision", "bf16"), ("--clips", 1)):
        result = evaluate(*common, *options)
        assert result.exit_code == 0, result.output
    kept = sorted(path.name for path in (run / "eval").iterdir())
    # Results with other clips, other parts or an earlier checkpoint have their own files.
    settings = ("1-clips", "2-clips", "2-clips-bf16")
    embeddings = [f"embeddings-{data}-v1-{words}.h5" for words in settings]
    assert kept == sorted([*embeddings, *(f"retrieval-split-label-{words}.json" for words in settings)])
    assert [read_features(run / "eval" / name).provenance.clips for name in embeddings] == [1, 2, 2]
    assert evaluate(*common, "--clips", 2, "--test-part", "train", "--train-part", "test").exit_code == 0
    assert (run / "eval" / "retrieval-split-train-in-test-label-2-clips.json").is_file()
    shutil.copytree(run / "checkpoints" / "step-00000003", run / "checkpoints" / "step-00000009")
    earlier = ("retrieval", run / "checkpoints" / "step-00000003", *common[2:], "--clips", 2)
    assert evaluate(*earlier).exit_code == 0
    assert (run / "eval" / "retrieval-split-label-step-00000003-2-clips.json").is_file()
    assert (run / "eval" / f"embeddings-{data}-v1-step-00000003-2-clips.h5").is_file()


def test_cached_features_of_other_weights_are_recomputed_only_on_request(few_shards: Path, tmp_path: Path) -> None:
    command = ("retrieval", tmp_path / "run", few_shards, *SPLIT, *QUICK, "--clips", 1)
    make_run(tmp_path / "run", few_shards)
    assert evaluate(*command).exit_code == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    make_run(tmp_path / "run", few_shards, run__seed=5)
    refused = evaluate(*command)
    assert refused.exit_code == 1
    assert "--fresh" in refused.output
    assert evaluate(*command, "--fresh").exit_code == 0


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which not even root can create files")
def test_a_run_folder_that_cannot_be_written_is_noticed_first(
    few_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", few_shards)
    features = tmp_path / "features" / "f.h5"
    assert evaluate("embed", run, few_shards, features, "--clips", 1, *QUICK).exit_code == 0
    (run / "eval").symlink_to("/proc/self")
    # The result goes beside the features file, with a note.
    beside = evaluate("retrieval", features, *SPLIT)
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
        refused = evaluate(*arguments, *(QUICK if arguments[0] in ("embed", "decoupling") else ()))
        assert refused.exit_code == 1, arguments
        assert "cannot be written to" in refused.output
        assert remedy in refused.output
    monkeypatch.undo()
    # A folder given by the user.
    own = tmp_path / "own"
    result = evaluate("retrieval", run, few_shards, *SPLIT, "--clips", 1, "--eval-dir", own, *QUICK)
    assert result.exit_code == 0, result.output
    data = ShardSet(few_shards).data_hash[:8]
    assert sorted(path.name for path in own.iterdir()) == [
        f"embeddings-{data}-v1-1-clips.h5",
        "retrieval-split-label-1-clips.json",
    ]


def computed_again(*_: object) -> None:
    pytest.fail("features are computed once per kind")


def test_readouts_change_what_is_compared(run_dir: Path, few_shards: Path) -> None:
    found = {}
    for readout in ("mean", "ordered", "grid", "grid-ordered", "directions"):
        result = evaluate("retrieval", run_dir, few_shards, "--clips", 2, *SPLIT, "--readout", readout, *QUICK)
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
    assert evaluate(*command).exit_code == 0
    record = json.loads((run_dir / "eval" / "retrieval-split-label-standardized-2-clips.json").read_text())
    assert record["provenance"]["standardized"] is True
    refused = evaluate("retrieval", run_dir / "eval" / files[0], *SPLIT, "--readout", "grid")
    assert refused.exit_code == 1
    assert "allow the readouts mean, ordered, not 'grid'" in refused.output


def test_a_features_file_records_its_readout(run_dir: Path, few_shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    command = ("embed", run_dir, few_shards, path, "--clips", 1, "--readout", "grid-ordered", *QUICK)
    assert evaluate(*command).exit_code == 0
    assert read_features(path).provenance.readout == "grid-ordered"
    other = evaluate(*command[: -len(QUICK) - 1], "grid", *QUICK)
    assert other.exit_code == 1
    assert "readout grid-ordered, expected grid" in other.output


def test_features_of_an_unknown_provenance_are_named(embeddings: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    path.write_bytes(embeddings.read_bytes())
    with h5py.File(path, "r+") as file:
        stored = json.loads(file.attrs["provenance"])
        file.attrs["provenance"] = json.dumps(stored | {"moon": "full"})
    result = evaluate("retrieval", path, *SPLIT)
    assert result.exit_code == 1
    assert "f.h5: not a readable features file" in result.output
