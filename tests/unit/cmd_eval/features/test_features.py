from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from cmd_eval.data.table import VideoTable
from cmd_eval.features.embed import ModelChoice, check_same, embed_to_file, embed_videos
from cmd_eval.features.spool import EmbeddingSpool
from cmd_eval.features.store import (
    FeatureError,
    FeatureRows,
    Features,
    column_statistics,
    read_features,
    write_features,
)
from cmd_eval.results.schema import Provenance
from cmd_train.config import build_config
from cmd_train.monitoring.neighbours import nearest
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
IDENTITY = {"data_hash": "d"}


def written(path: Path) -> tuple[Features, np.ndarray]:
    clips = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    write_features(path, VIDEOS, SOURCE, [clips[:2], clips[2:]], 2, 4)
    return read_features(path), clips


def test_features_come_back_as_they_were(tmp_path: Path) -> None:
    found, clips = written(tmp_path / "f.h5")
    assert found.videos == VIDEOS
    assert found.provenance == SOURCE
    np.testing.assert_array_equal(found.clips_VNF, clips)
    np.testing.assert_allclose(found.mean_VF, clips.mean(axis=1), rtol=1e-6)
    assert (found.mean_VF.dtype, found.mean_VF.base is not None) == (np.float32, True)
    assert list(tmp_path.iterdir()) == [tmp_path / "f.h5"]


def test_the_data_path_has_neither_objects_nor_variable_lengths(tmp_path: Path) -> None:
    written(tmp_path / "f.h5")

    def check(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            assert item.dtype.kind in "Sif", name
            assert h5py.check_vlen_dtype(item.dtype) is None
            assert item.chunks is None, "contiguous, to be mapped"

    with h5py.File(tmp_path / "f.h5") as file:
        file.visititems(check)
        assert {"video/id", "video/label", "video/group", "video/fingerprint", "feature/clips"} <= {
            f"{group}/{name}" for group in ("video", "feature") for name in file[group]
        }


def test_an_unfinished_file_is_never_seen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 rows for 3 videos"):
        write_features(tmp_path / "f.h5", VIDEOS, SOURCE, [np.zeros((1, 2, 4), np.float32)], 2, 4)
    assert not list(tmp_path.iterdir())


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
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
    [("clips", 10), ("data_hash", "e"), ("checkpoint_sha256", "1" * 64), ("untrained", True), ("features", "other")],
)
def test_features_of_something_else_are_not_used(tmp_path: Path, field: str, value: object) -> None:
    found, _ = written(tmp_path / "f.h5")
    check_same(found, replace(SOURCE, command="another", shards="elsewhere"))
    with pytest.raises(FeatureError, match=rf"{field} .*--fresh"):
        check_same(found, replace(SOURCE, **{field: value}))


def test_rows_are_read_in_blocks_and_standardised() -> None:
    values = np.random.default_rng(1).standard_normal((20_000, 3)).astype(np.float32) * [1, 5, 0] + [0, 100, 7]
    rows = FeatureRows(values.astype(np.float32), np.arange(0, 20_000, 2))
    mean, scale = column_statistics(rows)
    np.testing.assert_allclose(mean, values[::2].mean(axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scale[:2], values[::2].std(axis=0)[:2], rtol=1e-4)
    assert scale[2] == 1, "a column that does not vary is left alone"
    scaled = replace(rows, mean_F=mean, scale_F=scale)
    np.testing.assert_allclose(scaled[:].numpy().std(axis=0), [1, 1, 0], atol=1e-4)
    np.testing.assert_array_equal(scaled[5:7].numpy(), scaled.read()[5:7])


def test_a_spool_goes_on_after_its_last_whole_video(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    clips = np.random.default_rng(2).standard_normal((5, 2, 4)).astype(np.float32)
    with EmbeddingSpool(path, IDENTITY, 2, 4) as spool:
        for feature in clips[:3]:
            spool.append(feature)
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    record = (len(whole) - header) // 3
    for cut in (0, 5, header - 1, header, header + 3, header + record, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:cut])
        with EmbeddingSpool(path, IDENTITY, 2, 4) as spool:
            assert spool.done == max(0, cut - header) // record
            for feature in clips[spool.done :]:
                spool.append(feature)
            np.testing.assert_array_equal(np.concatenate(list(spool.blocks())), clips)
    # Zeros are what a power cut may leave.
    path.write_bytes(whole[: header + record] + bytes(record) + whole[header + 2 * record :])
    with EmbeddingSpool(path, IDENTITY, 2, 4) as spool:
        assert spool.done == 1


def test_a_spool_of_something_else_or_in_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    with EmbeddingSpool(path, IDENTITY, 2, 4) as spool:
        spool.append(np.zeros((2, 4), np.float32))
        with pytest.raises(FeatureError, match="another process"):
            EmbeddingSpool(path, IDENTITY, 2, 4)
        with pytest.raises(ValueError, match="shape"):
            spool.append(np.zeros((3, 4), np.float32))
    before = path.read_bytes()
    with pytest.raises(FeatureError, match=r"unfinished features of other weights.*--fresh"):
        EmbeddingSpool(path, {"data_hash": "e"}, 2, 4)
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_where_the_file_system_has_no_locks_a_spool_works_without(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr("cmd_eval.features.spool.fcntl.flock", refuse)
    with EmbeddingSpool(tmp_path / "x.partial", IDENTITY, 2, 4) as spool:
        spool.append(np.zeros((2, 4), np.float32))
    with EmbeddingSpool(tmp_path / "x.partial", IDENTITY, 2, 4) as spool:
        assert spool.done == 1
    monkeypatch.setattr("cmd_eval.features.spool.fcntl.flock", lambda *_: refuse_other())

    def refuse_other() -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        EmbeddingSpool(tmp_path / "x.partial", IDENTITY, 2, 4)


@pytest.mark.parametrize("fields", [{}, {"mean_F": np.zeros(4), "scale_F": np.ones(4)}])
def test_features_that_are_not_finite_are_refused_by_name(tmp_path: Path, fields: dict[str, np.ndarray]) -> None:
    clips = np.ones((3, 2, 4), np.float32)
    clips[2, 1, 3] = np.inf
    write_features(tmp_path / "f.h5", VIDEOS, SOURCE, [clips], 2, 4)
    rows = replace(read_features(tmp_path / "f.h5").rows(np.array([0, 2])), **fields)
    assert len(rows.read(slice(0, 1))) == 1
    with pytest.raises(FeatureError, match="the features of video ü#0001 are not finite"):
        rows.read()
    bad = torch.tensor([[1.0, 2.0], [torch.nan, 0.0]])
    for query, gallery, name in ((bad, bad[:1], "query_QD: row 1"), (bad[:1], bad, "gallery_GD: row 1")):
        with pytest.raises(ValueError, match=f"{name} holds values that are not finite"):
            nearest(query, gallery, 1)


class Net(torch.nn.Module):
    """A backbone that makes NaN of bright clips."""

    feature_channels = 3

    def forward(self, clip: torch.Tensor) -> SimpleNamespace:
        bright = clip.flatten(1).float().mean(1, keepdim=True)
        return SimpleNamespace(pooled_BC=torch.where(bright > 0, torch.nan, 1.0).expand(-1, 3))


def test_a_network_that_gives_no_numbers_is_told_with_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [SimpleNamespace(video_id="dark"), SimpleNamespace(video_id="bright")]
    batches = [SimpleNamespace(clips_u8_BNTHWC=torch.full((1, 2, 2, 8, 8, 3), n, dtype=torch.uint8)) for n in (0, 200)]
    monkeypatch.setattr("cmd_eval.features.embed.EvalDataset", lambda *_: None)
    monkeypatch.setattr("cmd_eval.features.embed.DataLoader", lambda *_, **__: batches)
    monkeypatch.setattr("cmd_eval.features.embed.center_crop", lambda clips, _: clips)
    made = embed_videos(
        Net(),
        None,
        videos,
        sampling=None,
        crop_size=8,
        clips=2,
        device=torch.device("cpu"),
        workers=0,  # type: ignore[arg-type] # stand-ins
    )
    assert next(made).tolist() == [[1.0] * 3] * 2
    with pytest.raises(ValueError, match="bright: the network's features are not finite"):
        next(made)


def embedding(monkeypatch: pytest.MonkeyPatch, value: float) -> Callable[..., Features]:
    """``embed_to_file`` with a network that makes ``value`` of everything."""
    net = SimpleNamespace(feature_channels=3)
    videos = [replace(entry, video_id=f"v{n}") for n, entry in enumerate(entries()[:2])]
    checkpoint = SimpleNamespace(config={"settings": build_config("demo").as_dict()})
    monkeypatch.setattr("cmd_eval.features.embed.load_checkpoint", lambda _: checkpoint)
    monkeypatch.setattr(
        "cmd_eval.features.embed.describe_model", lambda *_: replace(SOURCE, clips=1, checkpoint_sha256=str(value))
    )
    monkeypatch.setattr("cmd_eval.features.embed.load_backbone", lambda *_, **__: net)
    monkeypatch.setattr(
        "cmd_eval.features.embed.embed_videos", lambda *_, **__: iter([np.full((1, 3), value, np.float32)] * 2)
    )

    def run(path: Path, **options: bool) -> Features:
        choice = ModelChoice(checkpoint=path, clips=1, device="cpu")
        return embed_to_file(path, choice, SimpleNamespace(videos=videos), "x", lambda *_: None, **options)  # type: ignore[arg-type] # stand-ins

    return run


def test_fresh_features_replace_the_others_when_they_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, partial = tmp_path / "f.h5", tmp_path / "f.h5.partial"
    embedding(monkeypatch, 1.0)(path)
    before = path.read_bytes()
    other = embedding(monkeypatch, 2.0)
    with pytest.raises(FeatureError, match="--fresh"):
        other(path)
    # Another process is making them: neither its file nor the good one is touched.
    with EmbeddingSpool(partial, IDENTITY, 1, 3) as spool:
        spool.append(np.zeros((1, 3), np.float32))
        held = partial.read_bytes()
        with pytest.raises(FeatureError, match="another process"):
            other(path, fresh=True)
        assert (path.read_bytes(), partial.read_bytes()) == (before, held)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("damaged video")

    with monkeypatch.context() as broken:
        broken.setattr("cmd_eval.features.embed.embed_videos", fail)
        with pytest.raises(RuntimeError, match="damaged"):
            other(path, fresh=True)
    assert path.read_bytes() == before
    assert other(path, fresh=True).mean_VF.tolist() == [[2.0] * 3] * 2
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_has_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = embedding(monkeypatch, 1.0)

    class Killed(BaseException):
        pass

    def kill(path: Path) -> None:
        raise Killed

    with monkeypatch.context() as broken:
        # As SIGKILL does: nothing is tidied up behind the half-written file.
        broken.setattr("cmd_eval.results.whole_file._sync", kill)
        broken.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            run(tmp_path / "f.h5")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"f.h5.partial", ".tmp-f.h5"}
    run(tmp_path / "f.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5"]


_BOUNDED = """
import resource, sys
import numpy as np, torch
from cmd_eval.features.store import FeatureRows
from cmd_train.monitoring.neighbours import nearest
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


@pytest.mark.skipif(sys.platform != "linux", reason="the limit counts private memory on Linux only")
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
