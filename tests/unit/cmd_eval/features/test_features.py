from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from cmd_eval.data.table import VideoTable
from cmd_eval.features.clips import ClipProtocol, rebatch
from cmd_eval.features.embed import EmbeddingConfig, embed_to_file, embed_videos
from cmd_eval.features.spool import PartialFeatures, create_partial, share_of, writing
from cmd_eval.features.store import (
    FeatureError,
    FeatureRows,
    Features,
    check_identity,
    column_statistics,
    read_features,
    write_features,
)
from cmd_eval.results.schema import Provenance
from cmd_train.config import build_config
from cmd_train.monitoring.neighbors import nearest
from tests.listed_videos import ListedVideos
from tests.unit.cmd_train.data.test_dataset import entries

VIDEOS = VideoTable(
    ids=("a", "b\udcff", "ü#0001"),
    labels=("x", "", "y"),
    groups=("", "", ""),
    fingerprints=("1", "2", "3"),
    splits={"split1": ("train", "", "test"), "split_b": ("", "", "")},
    frame_counts=(5, 6, 7),
)
SOURCE = Provenance(command="cmd-eval embed", shards="s", data_hash="d", features="backbone, pooled",
                    checkpoint="c", checkpoint_sha256="0" * 64, settings={"run": {"seed": 1}}, clips=2)  # fmt: skip


def features_of(clips: np.ndarray) -> Features:
    return Features(videos=VIDEOS, mean_VF=clips.mean(axis=1), clips_VNF=clips, provenance=SOURCE)


def written(path: Path) -> tuple[Features, np.ndarray]:
    clips = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    write_features(path, features_of(clips))
    return read_features(path), clips


def partial_features(path: Path, **options: bool) -> PartialFeatures:
    create_partial(path, VIDEOS, SOURCE, 2, 4, **options)
    return PartialFeatures(path)


def test_features_survive_a_round_trip(tmp_path: Path) -> None:
    found, clips = written(tmp_path / "f.h5")
    assert found.videos == VIDEOS
    assert found.provenance == SOURCE
    np.testing.assert_array_equal(found.clips_VNF, clips)
    np.testing.assert_allclose(found.mean_VF, clips.mean(axis=1), rtol=1e-6)
    assert (found.mean_VF.dtype, found.mean_VF.base is not None) == (np.float32, True)
    assert list(tmp_path.iterdir()) == [tmp_path / "f.h5"]


def test_files_have_neither_object_nor_variable_length_types(tmp_path: Path) -> None:
    written(tmp_path / "f.h5")

    def check(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            assert item.dtype.kind in "Siuf", name
            assert h5py.check_vlen_dtype(item.dtype) is None
            assert item.chunks is None, "contiguous, for memory mapping"

    with h5py.File(tmp_path / "f.h5") as file:
        file.visititems(check)
        assert {"video/id", "video/label", "video/group", "video/fingerprint", "feature/clips"} <= {
            f"{group}/{name}" for group in ("video", "feature") for name in file[group]
        }


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = np.zeros((3, 2, 4), np.float32)
    with pytest.raises(ValueError, match="for 3 videos"):
        Features(videos=VIDEOS, mean_VF=clips[:, 0], clips_VNF=clips[:1], provenance=SOURCE)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("cmd_eval.features.store._allocate", fail)
    with pytest.raises(OSError, match="disk full"):
        write_features(tmp_path / "f.h5", features_of(clips))
    assert not list(tmp_path.iterdir())


def test_other_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    path.write_text("no HDF5")
    with pytest.raises(FeatureError, match="not a readable features file"):
        read_features(path)
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "context-motion-shard"
    with pytest.raises(FeatureError, match="format 'context-motion-shard'"):
        read_features(path)
    written(path)
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 9
    with pytest.raises(FeatureError, match="version 9"):
        read_features(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clips", 10),
        ("data_hash", "e"),
        ("checkpoint_sha256", "1" * 64),
        ("untrained", True),
        ("features", "other"),
        ("precision", "bf16"),
        ("preprocessing", 0),
    ],
)
def test_other_features_are_rejected(tmp_path: Path, field: str, value: object) -> None:
    found, _ = written(tmp_path / "f.h5")
    check_identity(found, replace(SOURCE, command="another", shards="elsewhere"))
    with pytest.raises(FeatureError, match=rf"{field} .*--fresh"):
        check_identity(found, replace(SOURCE, **{field: value}))


def test_rows_are_read_in_blocks_and_standardized() -> None:
    values = np.random.default_rng(1).standard_normal((20_000, 3)).astype(np.float32) * [1, 5, 0] + [0, 100, 7]
    rows = FeatureRows(values.astype(np.float32), np.arange(0, 20_000, 2))
    mean, scale = column_statistics(rows)
    np.testing.assert_allclose(mean, values[::2].mean(axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scale[:2], values[::2].std(axis=0)[:2], rtol=1e-4)
    assert scale[2] == 1, "a constant column is not scaled"
    scaled = replace(rows, mean_F=mean, scale_F=scale)
    np.testing.assert_allclose(scaled[:].numpy().std(axis=0), [1, 1, 0], atol=1e-4)
    np.testing.assert_array_equal(scaled[5:7].numpy(), scaled.read()[5:7])


def test_an_interrupted_file_is_completed(tmp_path: Path) -> None:
    path, partial = tmp_path / "x.h5", tmp_path / "x.h5.partial"
    clips = np.random.default_rng(2).standard_normal((3, 2, 4)).astype(np.float32)
    with partial_features(path) as writer:
        snapshots = [partial.read_bytes()]
        # In any order: several processes write their shares at the same time.
        for row in (1, 0, 2):
            writer.write(row, clips[row])
            snapshots.append(partial.read_bytes())
        writer.finish()
    assert list(tmp_path.iterdir()) == [path]
    complete = path.read_bytes()
    assert snapshots[3] == complete
    missing = [[range(3)], [range(1), range(2, 3)], [range(2, 3)], []]
    # A kill while a video is being written leaves any prefix of its changed bytes.
    for number, (before, after) in enumerate(pairwise(snapshots)):
        changed = [place for place in range(len(after)) if before[place] != after[place]]
        for count in (0, 1, len(changed) // 2, len(changed) - 1, len(changed)):
            data = bytearray(before)
            for place in changed[:count]:
                data[place] = after[place]
            partial.write_bytes(data)
            with partial_features(path) as writer:
                assert writer.missing == missing[number + (count == len(changed))]
                for rows in writer.missing:
                    for row in rows:
                        writer.write(row, clips[row])
                writer.finish()
            assert path.read_bytes() == complete
    # A power cut may leave zeros.
    zeroed = bytearray(complete)
    first = complete.index(clips[1].tobytes())
    zeroed[first : first + clips[1].nbytes] = bytes(clips[1].nbytes)
    partial.write_bytes(zeroed)
    with partial_features(path) as writer:
        assert writer.missing == [range(1, 2)]
        with pytest.raises(FeatureError, match="features of 1 videos are missing or damaged; run the same command"):
            writer.finish()


def test_a_partial_file_of_other_features_is_rejected(tmp_path: Path) -> None:
    path, partial = tmp_path / "x.h5", tmp_path / "x.h5.partial"
    with partial_features(path) as writer:
        writer.write(0, np.zeros((2, 4), np.float32))
        with pytest.raises(ValueError, match="shape"):
            writer.write(1, np.zeros((3, 4), np.float32))
    before = partial.read_bytes()
    with pytest.raises(FeatureError, match=r"x\.h5\.partial: .*other features \(data_hash d, expected e\).*--fresh"):
        create_partial(path, VIDEOS, replace(SOURCE, data_hash="e"), 2, 4)
    with pytest.raises(FeatureError, match=r"x\.h5\.partial: contains features of 4 values per clip, expected 5"):
        create_partial(path, VIDEOS, SOURCE, 2, 5)
    assert partial.read_bytes() == before
    with partial_features(path, fresh=True) as writer:
        assert writer.missing == [range(3)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 40])
def test_the_shares_of_processes_cover_the_missing_videos_once(world_size: int) -> None:
    ranges = [range(2), range(5, 17), range(20, 21), range(30, 45)]
    shares = [share_of(ranges, rank, world_size) for rank in range(world_size)]
    sizes = [sum(map(len, share)) for share in shares]
    assert [row for share in shares for rows in share for row in rows] == [row for rows in ranges for row in rows]
    assert max(sizes) - min(sizes) <= 1
    assert all(len(rows) for share in shares for rows in share)


def test_only_one_process_writes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with writing(path):
        with pytest.raises(FeatureError, match="another process is writing this file"), writing(path):
            pass
        with writing(tmp_path / "y.h5"):
            pass
    assert not list(tmp_path.iterdir())
    with writing(path):
        pass


NO_LOCKS = [*(OSError(number, "no locks") for number in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK))]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("error", [*NO_LOCKS, NotImplementedError("no locks")], ids=repr)
def test_features_are_written_on_file_systems_without_locks(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("fcntl.flock", refuse)
    with writing(tmp_path / "x.h5"), partial_features(tmp_path / "x.h5") as writer:
        # SIGKILL at this point leaves nothing behind that would stop the next run, on this host or another.
        assert [path.name for path in tmp_path.iterdir()] == ["x.h5.partial"]
        writer.write(0, np.zeros((2, 4), np.float32))
    with writing(tmp_path / "x.h5"), partial_features(tmp_path / "x.h5") as writer:
        assert writer.missing == [range(1, 3)]


def test_other_errors_of_locks_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(OSError, match="broken"), writing(tmp_path / "x.h5"):
        pass


@pytest.mark.parametrize("fields", [{}, {"mean_F": np.zeros(4), "scale_F": np.ones(4)}])
def test_features_that_are_not_finite_are_rejected_by_name(tmp_path: Path, fields: dict[str, np.ndarray]) -> None:
    clips = np.ones((3, 2, 4), np.float32)
    clips[2, 1, 3] = np.inf
    write_features(tmp_path / "f.h5", features_of(clips))
    rows = replace(read_features(tmp_path / "f.h5").rows(np.array([0, 2])), **fields)
    assert len(rows.read(slice(0, 1))) == 1
    with pytest.raises(FeatureError, match="the features of video ü#0001 are not finite"):
        rows.read()
    bad = torch.tensor([[1.0, 2.0], [torch.nan, 0.0]])
    for query, gallery, name in ((bad, bad[:1], "query_QD: row 1"), (bad[:1], bad, "gallery_GD: row 1")):
        with pytest.raises(ValueError, match=f"{name} contains values that are not finite"):
            nearest(query, gallery, 1)


class Net(torch.nn.Module):
    """A network that returns NaN for bright clips."""

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        bright = clip.flatten(1).float().mean(1, keepdim=True)
        return torch.where(bright > 0, torch.nan, 1.0).expand(-1, 3)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_features_that_are_not_finite_name_the_video(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = ListedVideos(
        [replace(entry, video_id=name) for entry, name in zip(entries(), ("dark", "bright"), strict=False)]
    )
    samples = [torch.full((2, 2, 8, 8, 3), value, dtype=torch.uint8) for value in (0, 200)]
    monkeypatch.setattr("cmd_eval.features.clips.EvalDataset", lambda *_: None)
    monkeypatch.setattr("cmd_eval.features.clips.iterate_samples", lambda *_, **__: samples)
    monkeypatch.setattr("cmd_eval.features.clips.center_crop", lambda clips, _: clips)
    protocol = ClipProtocol(
        sampling=None,  # type: ignore[arg-type] # stand-in
        crop_size=8,
        clips=2,
        device=torch.device("cpu"),
        batch_size=batch_size,
    )
    features = embed_videos(Net(), None, videos, protocol)  # type: ignore[arg-type] # stand-in
    assert next(features).tolist() == [[1.0] * 3] * 2
    with pytest.raises(ValueError, match="bright: the network's features are not finite"):
        next(features)


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 30])
def test_tensors_are_divided_into_batches_of_one_size(rows: int) -> None:
    values = torch.arange(24).reshape(12, 2)
    parts = [values[:1], values[1:8], values[8:8], values[8:]]
    batches = list(rebatch(iter(parts), rows))
    assert [len(batch) for batch in batches[:-1]] == [rows] * (len(batches) - 1)
    assert 0 < len(batches[-1]) <= rows
    assert torch.cat(batches).equal(values)


def embedding(monkeypatch: pytest.MonkeyPatch, value: float) -> Callable[..., Features]:
    """``embed_to_file`` with a network whose features are all ``value``."""
    net = SimpleNamespace(width=3)
    videos = ListedVideos([replace(entry, video_id=f"v{n}") for n, entry in enumerate(entries()[:2])])
    checkpoint = SimpleNamespace(config={"settings": build_config("demo").as_dict()})
    monkeypatch.setattr("cmd_eval.features.embed.load_checkpoint", lambda _: checkpoint)
    monkeypatch.setattr(
        "cmd_eval.features.embed.describe_model", lambda *_: replace(SOURCE, clips=1, checkpoint_sha256=str(value))
    )
    monkeypatch.setattr("cmd_eval.features.embed.load_clip_network", lambda *_, **__: net)
    monkeypatch.setattr(
        "cmd_eval.features.embed.embed_videos",
        lambda *given: iter([np.full((1, 3), value, np.float32)] * len(given[4])),
    )

    def run(path: Path, **options: bool) -> Features:
        config = EmbeddingConfig(checkpoint=path, clips=1, device="cpu")
        return embed_to_file(path, config, SimpleNamespace(videos=videos), "x", lambda *_: None, **options)  # type: ignore[arg-type] # stand-ins

    return run


def test_fresh_features_replace_the_others_once_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.h5"
    embedding(monkeypatch, 1.0)(path)
    before = path.read_bytes()
    other = embedding(monkeypatch, 2.0)
    with pytest.raises(FeatureError, match="--fresh"):
        other(path)
    # While another process writes the file, nothing is touched.
    with writing(path):
        with pytest.raises(FeatureError, match="another process"):
            other(path, fresh=True)
        assert path.read_bytes() == before

    def fail(*_: object) -> None:
        raise RuntimeError("damaged video")

    with monkeypatch.context() as broken:
        broken.setattr("cmd_eval.features.embed.embed_videos", fail)
        with pytest.raises(RuntimeError, match="damaged"):
            other(path, fresh=True)
    assert path.read_bytes() == before
    assert other(path, fresh=True).mean_VF.tolist() == [[2.0] * 3] * 2
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = embedding(monkeypatch, 1.0)

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as broken:
        # SIGKILL between the last video and the renaming; nothing is cleaned up.
        broken.setattr("cmd_eval.features.spool.PartialFeatures.finish", kill)
        broken.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            run(tmp_path / "f.h5")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"f.h5.partial", ".f.h5.lock"}
    assert run(tmp_path / "f.h5").mean_VF.tolist() == [[1.0] * 3] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5"]


_BOUNDED = """
import resource, sys
import numpy as np, torch
from cmd_eval.features.store import FeatureRows
from cmd_train.monitoring.neighbors import nearest
torch.set_num_threads(1)
table = np.memmap(sys.argv[1], np.float32, "r", shape=(180_000, 256))
rows = np.arange(180_000)
nearest(FeatureRows(table, rows[:8]), FeatureRows(table, rows[:64]), 5)
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 140_000_000,) * 2)
if sys.argv[2] == "whole":
    gallery = torch.from_numpy(np.array(table))
else:
    gallery = FeatureRows(table, rows)
print(nearest(FeatureRows(table, rows[:40]), gallery, 50)[1][:, 0].tolist() == list(range(40)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts private memory on Linux only")
def test_a_gallery_larger_than_memory_is_searched_in_blocks(tmp_path: Path) -> None:
    # 184 MB of features, 140 MB of memory; blocks of 32,768 x 256 take 34 MB each.
    path = tmp_path / "features.f32"
    rng = np.random.default_rng(0)
    with path.open("wb") as stream:
        for _ in range(18):
            stream.write(rng.standard_normal((10_000, 256), np.float32).tobytes())

    def search(how: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _BOUNDED, str(path), how]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    assert search("blocks").stdout.strip() == "True"
    whole = search("whole")
    assert whole.returncode != 0
    assert "memory" in whole.stderr.lower() or "alloc" in whole.stderr.lower()
