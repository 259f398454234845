from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmd_extract.system import files, liveness
from cmd_extract.system.files import (
    atomic_write,
    create_exclusively,
    remove_leftovers,
    scratch_folder,
    sync,
    temporary_path,
    write_atomically,
)
from cmd_extract.system.liveness import Heartbeat, file_system_time

ANOTHER_BOOT = "another boot/pid:[4026531836]"


def put(path: Path, age_seconds: float = 0.0) -> Path:
    path.touch()
    then = time.time() - age_seconds
    os.utime(path, (then, then))
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_only_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)  # now a zombie
    living = subprocess.Popen(["sleep", "60"])
    own = temporary_path(tmp_path / "shard").name
    start = own[: own.index(f"-{os.getpid()}-")]
    put(tmp_path / f"{start}-{dead.pid}-shard")
    stays = put(tmp_path / f"{start}-{living.pid}-shard", age_seconds=9999)
    elsewhere = put(tmp_path / f".extract-elsewhere-{dead.pid}-shard")
    remove_leftovers(tmp_path, stale_seconds=50)
    living.kill()
    assert names(tmp_path) == {stays.name, elsewhere.name}
    living.wait()
    dead.wait()


def test_leftovers_of_other_machines_are_removed_once_stale(tmp_path: Path) -> None:
    put(tmp_path / ".extract-elsewhere-1-old", age_seconds=60)
    new = put(tmp_path / ".extract-elsewhere-1-new", age_seconds=40)
    remove_leftovers(tmp_path, stale_seconds=50)
    assert names(tmp_path) == {new.name}


def test_containers_with_the_same_host_name_keep_each_others_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scratch_folder(tmp_path) as scratch:
        other = temporary_path(tmp_path / "index.json")
        other.touch()
        # In the other container our process id does not exist, or it is that of the process that cleans up.
        monkeypatch.setattr(liveness, "machine_identity", lambda: ANOTHER_BOOT)
        remove_leftovers(tmp_path)
        monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)
        remove_leftovers(tmp_path)
        assert names(tmp_path) == {scratch.name, other.name}
    assert names(tmp_path) == {other.name}


def test_temporary_names_are_unique(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    assert temporary_path(path) != temporary_path(path)


def test_files_being_written_have_a_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "Heartbeat", lambda path: Heartbeat(path, 0.1))
    seen = []

    def wait_for_heartbeat(path: Path) -> None:
        path.touch()
        os.utime(path, (0, 0))
        end = time.monotonic() + 60
        while path.stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.01)
        seen.append(path)

    with scratch_folder(tmp_path) as scratch:
        wait_for_heartbeat(scratch)
        with atomic_write(tmp_path / "shard") as temporary:
            wait_for_heartbeat(temporary)
    assert len(seen) == 2
    assert names(tmp_path) == {"shard"}


def test_atomic_write_creates_folders_and_keeps_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "new" / "picture.jpg"
    with atomic_write(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (path.parent, ".jpg")
        temporary.write_text("complete")
        assert not path.exists()
    assert names(path.parent) == {"picture.jpg"}
    assert path.read_text() == "complete"


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), atomic_write(path) as temporary:
        fail(temporary)
    assert names(tmp_path) == {"index.json"}
    assert path.read_text() == "old"


def test_leftovers_of_the_clock_are_removed_like_all_others(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from cmd_extract.system.liveness import file_system_time
os.utime = lambda path: os.kill(os.getpid(), signal.SIGKILL)
file_system_time(Path(sys.argv[1]))
"""
    subprocess.run([sys.executable, "-c", program, tmp_path], timeout=60, check=False)
    assert len(names(tmp_path)) == 1
    remove_leftovers(tmp_path)
    assert names(tmp_path) == set()
    file_system_time(tmp_path)
    assert names(tmp_path) == set()


def test_cleaning_up_raises_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It happens while another error is handled, which must not be replaced: on a full disk, no clock can be read."""
    old = put(tmp_path / ".extract-elsewhere-1-old", age_seconds=9999)

    def full(folder: Path) -> float:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files, "file_system_time", full)
        remove_leftovers(tmp_path)
    assert names(tmp_path) == {old.name}, "its age is unknown"
    with monkeypatch.context() as patch:
        patch.setattr(files, "remove", full)
        remove_leftovers(tmp_path)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == set()


def without_sync(number: int, *, folders_only: bool) -> object:
    """Return a replacement of os.fsync that fails like a file system which does not support it."""
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        if not folders_only or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    return fail


@pytest.mark.parametrize(
    ("number", "folders_only"),
    [(errno.EINVAL, True), (errno.EBADF, True), (errno.EACCES, True), (errno.EINVAL, False), (errno.ENOTSUP, False)],
)
def test_file_systems_without_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, folders_only: bool
) -> None:
    monkeypatch.setattr(os, "fsync", without_sync(number, folders_only=folders_only))
    write_atomically(tmp_path / "file", "whole")
    assert (tmp_path / "file").read_text() == "whole"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_errors_of_sync_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "fsync", without_sync(number, folders_only=False))
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path):
        with pytest.raises(OSError, match=os.strerror(number)):
            sync(path)


@pytest.mark.parametrize("links", [True, False])
def test_exactly_one_creates_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = tmp_path / "run.json"
    assert create_exclusively(path, "first")
    assert not create_exclusively(path, "second")
    assert (names(tmp_path), path.read_text()) == ({"run.json"}, "first")


def test_temporary_names_fit_the_file_system(tmp_path: Path) -> None:
    for name in ("n" * 250 + ".csv", "\u00fc" * 125 + ".csv"):
        write_atomically(tmp_path / name, b"whole")
        assert temporary_path(tmp_path / name).suffix == ".csv"
        assert (tmp_path / name).read_text() == "whole"
