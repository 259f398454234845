from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cmd_extract.cluster.claims import Claims, Owner

SHARD = "shard-00003.h5"
ELSEWHERE = Owner(host="elsewhere", machine="another", pid=1, job="", restart=0)


def put(claims: Claims, owner: Owner, age_seconds: float = 0.0) -> Path:
    claims.folder.mkdir(exist_ok=True)
    path = claims.folder / SHARD
    path.write_text(json.dumps(asdict(owner)))
    then = time.time() - age_seconds
    os.utime(path, (then, then))
    return path


def test_a_claim_excludes_others_while_it_lasts(tmp_path: Path) -> None:
    claims = Claims(out=tmp_path)
    with claims.hold(SHARD) as mine:
        assert mine
        assert claims.is_held(SHARD)
        with claims.hold(SHARD) as again:
            assert not again
        assert claims.is_held(SHARD), "who did not get it does not give it back"
        with claims.hold("shard-00004.h5") as another:
            assert another
    assert not claims.is_held(SHARD)
    assert claims.names() == []


def test_a_claim_from_elsewhere_counts_until_it_is_stale(tmp_path: Path) -> None:
    claims = Claims(out=tmp_path, stale_seconds=50)
    put(claims, ELSEWHERE, age_seconds=40)
    with claims.hold(SHARD) as mine:
        assert not mine
    put(claims, ELSEWHERE, age_seconds=60)
    with claims.hold(SHARD) as mine:
        assert mine
        claim = claims.read(SHARD)
        assert claim
        assert claim.owner == Owner.here()


def test_the_claim_of_a_process_that_has_ended_here_does_not_count(tmp_path: Path) -> None:
    claims = Claims(out=tmp_path)
    ended = subprocess.Popen(["true"])
    ended.wait()
    living = subprocess.Popen(["sleep", "60"])
    try:
        path = put(claims, replace(Owner.here(), pid=living.pid))
        assert claims.is_held(SHARD)
        claims.remove_dead()
        assert path.exists()
        # The same number on another machine says nothing.
        put(claims, replace(ELSEWHERE, pid=ended.pid))
        assert claims.is_held(SHARD)
        put(claims, replace(Owner.here(), pid=ended.pid))
        assert not claims.is_held(SHARD)
        claims.remove_dead()
        assert not path.exists()
    finally:
        living.kill()
        living.wait()


@pytest.mark.parametrize(("job", "restart", "held"), [("7", "1", False), ("7", "0", True), ("8", "1", True)])
def test_a_requeued_job_does_not_wait_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, restart: str, held: bool
) -> None:
    claims = Claims(out=tmp_path)
    put(claims, replace(ELSEWHERE, job="7"))
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
    assert claims.is_held(SHARD) is held


def test_who_was_thought_dead_leaves_the_claim_to_its_new_owner(tmp_path: Path) -> None:
    claims = Claims(out=tmp_path)
    with claims.hold(SHARD):
        path = put(claims, ELSEWHERE)
    assert json.loads(path.read_text())["host"] == "elsewhere"


def test_a_claim_is_kept_alive(tmp_path: Path) -> None:
    claims = Claims(out=tmp_path, stale_seconds=0.9)
    with claims.hold(SHARD):
        path = claims.folder / SHARD
        os.utime(path, (0, 0))
        end = time.monotonic() + 60
        while path.stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_claim_without_words_counts_by_its_age(tmp_path: Path) -> None:
    claims = Claims(out=tmp_path, stale_seconds=50)
    path = put(claims, ELSEWHERE)
    path.write_text("")
    assert claims.is_held(SHARD)
    os.utime(path, (0, 0))
    assert not claims.is_held(SHARD)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_a_claim_that_goes_while_it_is_read_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    claims = Claims(out=tmp_path)
    put(claims, ELSEWHERE)

    def gone(*_: object) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_text", gone)
    assert claims.read(SHARD) is None
    assert not claims.is_held(SHARD)


def test_a_folder_that_a_merge_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = Claims(out=tmp_path)
    make, times = Path.mkdir, []

    def make_and_lose(self: Path, *arguments: object, **options: bool) -> None:
        make(self, **options)
        times.append(self)
        if len(times) == 1:
            self.rmdir()

    monkeypatch.setattr(Path, "mkdir", make_and_lose)
    with claims.hold(SHARD) as mine:
        assert mine
    assert len(times) == 2
