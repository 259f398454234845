from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cmd_extract.system.claims import Claims, Owner

SHARD = "shard-00003.h5"
REMOTE = Owner(host="remote", machine="another", pid=1, job="", restart=0)


def write_claim(claims: Claims, owner: Owner, age_seconds: float = 0.0) -> Path:
    claims.folder.mkdir(exist_ok=True)
    path = claims.folder / SHARD
    path.write_text(json.dumps(asdict(owner)))
    modified = time.time() - age_seconds
    os.utime(path, (modified, modified))
    return path


def test_claim_excludes_other_processes_while_held(tmp_path: Path) -> None:
    claims = Claims(out=tmp_path)
    with claims.hold(SHARD) as acquired:
        assert acquired
        assert claims.is_held(SHARD)
        with claims.hold(SHARD) as repeated:
            assert not repeated
        assert claims.is_held(SHARD), "a process that did not get the claim must not release it"
        with claims.hold("shard-00004.h5") as other:
            assert other
    assert not claims.is_held(SHARD)
    assert claims.names() == []


def test_claim_of_remote_process_is_valid_until_stale(tmp_path: Path) -> None:
    claims = Claims(out=tmp_path, stale_seconds=50)
    write_claim(claims, REMOTE, age_seconds=40)
    with claims.hold(SHARD) as acquired:
        assert not acquired
    write_claim(claims, REMOTE, age_seconds=60)
    with claims.hold(SHARD) as acquired:
        assert acquired
        claim = claims.read(SHARD)
        assert claim
        assert claim.owner == Owner.current()


def test_claim_of_ended_local_process_is_invalid(tmp_path: Path) -> None:
    claims = Claims(out=tmp_path)
    ended = subprocess.Popen(["true"])
    ended.wait()
    running = subprocess.Popen(["sleep", "60"])
    try:
        path = write_claim(claims, replace(Owner.current(), pid=running.pid))
        assert claims.is_held(SHARD)
        claims.remove_ended()
        assert path.exists()
        # The same process ID on another machine is unrelated.
        write_claim(claims, replace(REMOTE, pid=ended.pid))
        assert claims.is_held(SHARD)
        write_claim(claims, replace(Owner.current(), pid=ended.pid))
        assert not claims.is_held(SHARD)
        claims.remove_ended()
        assert not path.exists()
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize(("job", "restart", "held"), [("7", "1", False), ("7", "0", True), ("8", "1", True)])
def test_requeued_job_does_not_wait_for_its_previous_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, restart: str, held: bool
) -> None:
    claims = Claims(out=tmp_path)
    write_claim(claims, replace(REMOTE, job="7"))
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
    assert claims.is_held(SHARD) is held


def test_previous_owner_does_not_release_claim_taken_over(tmp_path: Path) -> None:
    claims = Claims(out=tmp_path)
    with claims.hold(SHARD):
        path = write_claim(claims, REMOTE)
    assert json.loads(path.read_text())["host"] == "remote"


def test_heartbeat_renews_claim(tmp_path: Path) -> None:
    claims = Claims(out=tmp_path, stale_seconds=0.9)
    with claims.hold(SHARD):
        path = claims.folder / SHARD
        os.utime(path, (0, 0))
        end = time.monotonic() + 60
        while path.stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_claim_from_the_future_is_not_waited_for(tmp_path: Path) -> None:
    claims = Claims(out=tmp_path, stale_seconds=50)
    path = write_claim(claims, REMOTE)
    assert list(claims.read_all()) == [SHARD]
    later = time.time() + 3600
    os.utime(path, (later, later))
    assert not claims.is_held(SHARD)
    assert not claims.read_all()


@pytest.mark.parametrize("place", ["a file", "a broken link", "removed"])
def test_a_claims_folder_that_cannot_be_used_is_an_error(tmp_path: Path, place: str) -> None:
    claims = Claims(out=tmp_path / "out")
    if place != "removed":
        claims.out.mkdir()
    if place == "a file":
        claims.folder.touch()
    elif place == "a broken link":
        claims.folder.symlink_to(tmp_path / "missing")
    with pytest.raises(FileNotFoundError if place == "removed" else NotADirectoryError), claims.hold(SHARD):
        pass


def test_empty_claim_is_valid_until_stale(tmp_path: Path) -> None:
    claims = Claims(out=tmp_path, stale_seconds=50)
    path = write_claim(claims, REMOTE)
    path.write_text("")
    assert claims.is_held(SHARD)
    os.utime(path, (0, 0))
    assert not claims.is_held(SHARD)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_claim_removed_during_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    claims = Claims(out=tmp_path)
    write_claim(claims, REMOTE)

    def raise_missing(*_: object) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_text", raise_missing)
    assert claims.read(SHARD) is None
    assert not claims.is_held(SHARD)


def test_folder_removed_by_merge_is_recreated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = Claims(out=tmp_path)
    mkdir, calls = Path.mkdir, []

    def mkdir_then_remove_once(self: Path, *arguments: object, **options: bool) -> None:
        mkdir(self, **options)
        calls.append(self)
        if len(calls) == 1:
            self.rmdir()

    monkeypatch.setattr(Path, "mkdir", mkdir_then_remove_once)
    with claims.hold(SHARD) as acquired:
        assert acquired
    assert len(calls) == 2


def full_disk(*_: object) -> float:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_claim_ends_with_the_error_of_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk, not even the clock of the file system can be read."""
    claims = Claims(out=tmp_path)

    def build() -> None:
        with claims.hold(SHARD) as acquired:
            assert acquired
            monkeypatch.setattr("cmd_extract.system.claims.file_system_time", full_disk)
            raise RuntimeError("the real error")

    with pytest.raises(RuntimeError, match="the real error"):
        build()
    assert claims.names() == []


def test_a_claim_that_cannot_be_written_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = Claims(out=tmp_path)
    monkeypatch.setattr(json, "dump", full_disk)
    with pytest.raises(OSError, match="No space left"), claims.hold(SHARD):
        pass
    assert claims.names() == []


def test_reading_claims_leaves_nothing_in_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock's file, which a killed process leaves behind, is in the output folder, where it is removed."""
    claims = Claims(out=tmp_path)
    write_claim(claims, REMOTE)
    folders = []
    monkeypatch.setattr("cmd_extract.system.claims.file_system_time", lambda folder: folders.append(folder) or 0.0)
    claims.read(SHARD)
    assert folders == [tmp_path]


def test_claims_may_never_expire(tmp_path: Path) -> None:
    with Claims(out=tmp_path, stale_seconds=float("inf")).hold(SHARD) as acquired:
        assert acquired
