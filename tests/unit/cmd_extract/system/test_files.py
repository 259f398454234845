from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from cmd_extract.system import files as atomic
from cmd_extract.system.files import remove_leftovers, scratch_folder, temporary_path, write_whole
from cmd_extract.system.liveness import Heartbeat

ANOTHER_BOOT = "another boot/pid:[4026531836]"


def put(path: Path, age_seconds: float = 0.0) -> Path:
    path.touch()
    then = time.time() - age_seconds
    os.utime(path, (then, then))
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    living = subprocess.Popen(["sleep", "60"])
    own = temporary_path(tmp_path / "shard").name
    start = own[: own.index(f"-{os.getpid()}-")]
    put(tmp_path / f"{start}-{dead.pid}-shard")
    stays = put(tmp_path / f"{start}-{living.pid}-shard", age_seconds=9999)
    elsewhere = put(tmp_path / f".extract-elsewhere-{dead.pid}-shard")
    remove_leftovers(tmp_path, silent_seconds=50)
    living.kill()
    assert names(tmp_path) == {stays.name, elsewhere.name}
    living.wait()
    dead.wait()


def test_what_other_machines_have_left_goes_once_it_is_silent(tmp_path: Path) -> None:
    put(tmp_path / ".extract-elsewhere-1-old", age_seconds=60)
    new = put(tmp_path / ".extract-elsewhere-1-new", age_seconds=40)
    remove_leftovers(tmp_path, silent_seconds=50)
    assert names(tmp_path) == {new.name}


def test_two_containers_of_one_name_leave_each_other_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scratch_folder(tmp_path) as scratch:
        other = temporary_path(tmp_path / "index.json")
        other.touch()
        # Seen from there, no process has our number; or it is the one that looks.
        monkeypatch.setattr(atomic, "machine_identity", lambda: ANOTHER_BOOT)
        remove_leftovers(tmp_path)
        monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)
        remove_leftovers(tmp_path)
        assert names(tmp_path) == {scratch.name, other.name}
    assert names(tmp_path) == {other.name}


def test_temporary_names_are_never_the_same(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    assert temporary_path(path) != temporary_path(path)


def test_what_is_being_written_is_kept_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "Heartbeat", lambda path: Heartbeat(path, 0.1))
    seen = []

    def wait_for_a_beat(path: Path) -> None:
        path.touch()
        os.utime(path, (0, 0))
        end = time.monotonic() + 60
        while path.stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.01)
        seen.append(path)

    with scratch_folder(tmp_path) as scratch:
        wait_for_a_beat(scratch)
        write_whole(tmp_path / "shard", wait_for_a_beat)
    assert len(seen) == 2
    assert names(tmp_path) == {"shard"}
