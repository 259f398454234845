"""Says who is making a shard, so that tasks which overlap do not do the same work twice.

A claim is a small file, made by exclusive creation and kept alive by its time stamp; no locks. Claims only save work:
two tasks that both make a shard write the same bytes under names of their own and rename them into place.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cmd_extract.system.liveness import STALE_SECONDS, Heartbeat, file_system_time, is_running, machine_identity

CLAIMS_FOLDER = "claims"
# Gone, or so gone that its folder's server has forgotten it (NFS).
_GONE = (errno.ENOENT, errno.ESTALE)
_TRIES = 4


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process on a cluster.

    Attributes:
        host: the machine's name.
        machine: identifies the running system, and the numbering of its processes, better than the name does.
        pid: the process.
        job: the scheduler's name of the job, empty if there is none.
        restart: how often the scheduler has requeued the job.
    """

    host: str
    machine: str
    pid: int
    job: str
    restart: int

    @classmethod
    def here(cls, environ: Mapping[str, str] = os.environ) -> Owner:
        """This process."""
        job, restart = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_RESTART_COUNT", "")
        host = socket.gethostname()
        return cls(
            host=host,
            machine=machine_identity() or host,
            pid=os.getpid(),
            job=job,
            restart=int(restart or 0) if job else 0,
        )

    def is_gone(self, seen_from: Owner) -> bool:
        """Whether this process certainly runs no more: it is missing here, or its job has been started again."""
        if self.machine == seen_from.machine and not is_running(self.pid):
            return True
        return bool(self.job) and self.job == seen_from.job and self.restart < seen_from.restart


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a claim file says.

    Attributes:
        owner: who makes the shard; None if the file cannot be read (yet).
        age_seconds: since its last sign of life.
    """

    owner: Owner | None
    age_seconds: float


@dataclass(frozen=True, kw_only=True)
class Claims:
    """The claims of an output folder.

    Attributes:
        out: the output folder.
        stale_seconds: age at which a claim no longer counts.
    """

    out: Path
    stale_seconds: float = STALE_SECONDS

    def __post_init__(self) -> None:
        if not self.stale_seconds > 0:
            raise ValueError(f"stale_seconds: {self.stale_seconds} is not positive")

    @property
    def folder(self) -> Path:
        """Where the claim files lie."""
        return self.out / CLAIMS_FOLDER

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Claims a shard for the time of the ``with`` block; gives False, and claims nothing, if it is someone's."""
        if not self._take(name):
            yield False
            return
        path = self.folder / name
        try:
            with Heartbeat(path, self.stale_seconds):
                yield True
        finally:
            claim = self.read(name)
            if claim and claim.owner == Owner.here():  # else it was thought dead, and has a new owner
                _unlink(path)

    def is_held(self, name: str) -> bool:
        """Whether someone who seems to be alive is making the shard."""
        claim = self.read(name)
        return claim is not None and not self.is_stale(claim)

    def is_stale(self, claim: Claim) -> bool:
        """Whether the claim no longer counts."""
        gone = claim.owner is not None and claim.owner.is_gone(Owner.here())
        return gone or claim.age_seconds > self.stale_seconds

    def read(self, name: str, now: float | None = None) -> Claim | None:
        """What is said of a shard; None if it is nobody's.

        Args:
            name: the shard's file name.
            now: seconds since 1970; None asks the file system, which takes the right to write there.
        """
        path = self.folder / name
        try:
            text, changed = path.read_text("utf-8"), path.stat().st_mtime
            present = file_system_time(self.folder) if now is None else now
        except OSError as error:
            if error.errno in _GONE:  # perhaps with the whole folder
                return None
            raise
        try:
            owner = Owner(**json.loads(text))
        except (ValueError, TypeError):
            owner = None  # between creation and first words; or its owner died there, which its age will tell
        return Claim(owner=owner, age_seconds=present - changed)

    def names(self) -> list[str]:
        """Names of the shards that are claimed, living or stale."""
        return sorted(p.name for p in self.folder.glob("shard-*")) if self.folder.is_dir() else []

    def remove_dead(self) -> None:
        """Removes the claims of processes of this machine that have ended."""
        for name in self.names():
            claim = self.read(name)
            if claim and claim.owner and claim.owner.is_gone(Owner.here()):
                _unlink(self.folder / name)

    def _take(self, name: str) -> bool:
        path = self.folder / name
        # Two tasks may find the same stale claim; in the worst case both go on, and do the same work.
        for _ in range(_TRIES):
            try:
                self.folder.mkdir(exist_ok=True)
                with path.open("x", encoding="utf-8") as stream:
                    json.dump(asdict(Owner.here()), stream)
                return True
            except FileExistsError:
                if self.is_held(name):
                    return False
                _unlink(path)
            except OSError as error:
                if error.errno not in _GONE:  # else a merge has just removed the empty folder
                    raise
        return False


def _unlink(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        if error.errno not in _GONE:
            raise
