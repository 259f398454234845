"""Output folders that cannot be written or have been damaged, and changed sources."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.cmd_extract.extraction import PROGRAM, MakeVideo, contents


def run(*arguments: object, file_bytes: int | None = None) -> tuple[int, str]:
    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    # The limit would also apply to the files that coverage writes.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=limit, check=False, env=env)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name in "abcd":
        make_video(folder / f"{name}.mp4", "-c:v", "libx264", frames=30)
    (folder / "m.csv").write_text("id,path\n" + "".join(f"{n},{n}.mp4\n" for n in "abcd"))
    return folder


@pytest.fixture(scope="module")
def expected(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    assert run("run", videos / "m.csv", out, "--workers", 1)[0] == 0
    return contents(out)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("program", ["ffmpeg", "hdf5"])
def test_a_failed_write_is_an_error_of_the_run_not_of_a_video(
    videos: Path, expected: dict[str, bytes], tmp_path: Path, program: str, workers: int
) -> None:
    out = tmp_path / "out"
    shard_bytes = min(len(data) for name, data in expected.items() if name.endswith(".h5"))
    file_bytes = {"ffmpeg": 30_000, "hdf5": shard_bytes - 4096}[program]
    code, errors = run("run", videos / "m.csv", out, "--workers", workers, file_bytes=file_bytes)
    assert code == 1
    assert "cannot write" in errors
    assert "same command again" in errors
    assert not (out / "failures.csv").exists()
    assert {p.name for p in out.iterdir()} == {"run.json", "tasks"}, "no partial files are left behind"
    assert run("run", videos / "m.csv", out, "--workers", workers)[0] == 0
    assert contents(out) == expected


def test_a_full_disk(videos: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    size = 4 * max(map(len, expected.values()))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(out)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("not permitted to mount a small file system")
    try:
        code, errors = run("run", videos / "m.csv", out, "--workers", 1)
        assert code == 1
        assert "No space left on device" in errors
        kept = {p.name: p.read_bytes() for p in out.glob("shard-*.h5")}
        assert kept, "finished shards are kept"
        assert all(expected[name] == data for name, data in kept.items())
        subprocess.run(["mount", "-o", "remount,size=64m", out], check=True)
        assert run("run", videos / "m.csv", out, "--workers", 1)[0] == 0
        assert contents(out) == expected
    finally:
        subprocess.run(["umount", "-l", out], check=True)


def test_an_output_folder_that_is_not_writable(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    code, errors = run("run", videos / "m.csv", tmp_path / "file" / "out")
    assert code == 1
    assert str(tmp_path / "file") in errors
    if os.getuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        code, errors = run("run", videos / "m.csv", tmp_path / "locked" / "out")
        assert code == 1
        assert "Permission denied" in errors


def test_an_unreadable_shard_is_built_again(videos: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert run("run", videos / "m.csv", out, "--workers", 1)[0] == 0
    shard = out / "shard-00001.h5"
    shard.write_bytes(shard.read_bytes()[:1000])
    assert run("run", videos / "m.csv", out, "--workers", 1)[0] == 0
    assert contents(out) == expected


def test_a_changed_source_is_reported(videos: Path, tmp_path: Path, make_video: MakeVideo) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.mp4").write_bytes((videos / f"{name}.mp4").read_bytes())
    (tmp_path / "m.csv").write_bytes((videos / "m.csv").read_bytes())
    out = tmp_path / "out"
    assert run("run", tmp_path / "m.csv", out, "--workers", 1)[0] == 0
    before = contents(out)
    make_video(tmp_path / "c.mp4", "-c:v", "libx264", frames=20)
    code, errors = run("run", tmp_path / "m.csv", out, "--workers", 1)
    assert code == 1
    assert "c.mp4" in errors
    assert "verify" in errors
    assert contents(out) == before
    (tmp_path / "c.mp4").unlink()
    assert run("run", tmp_path / "m.csv", out, "--workers", 1)[0] == 0, "a missing source is not needed any more"
