"""Claims on shards, so that overlapping tasks do not do the same work twice.

A claim is a lease: a small file that is created exclusively and kept alive by renewing its timestamp. There are no
locks. Claims only save work: two tasks that build the same shard write identical bytes to temporary files and rename
them.
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
_MISSING = (errno.ENOENT, errno.ESTALE)  # ESTALE: stale NFS handle, the folder was removed on the server
_MAX_ATTEMPTS = 4


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process on a cluster.

    Attributes:
        host: host name.
        machine: identifies the booted system and its PID namespace, more reliably than the host name.
        pid: process ID.
        job: job ID assigned by the scheduler, empty outside a job.
        restart: number of times the scheduler has requeued the job.
    """

    host: str
    machine: str
    pid: int
    job: str
    restart: int

    @classmethod
    def current(cls, environ: Mapping[str, str] = os.environ) -> Owner:
        """Return the current process."""
        job, restart = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_RESTART_COUNT", "")
        host = socket.gethostname()
        return cls(
            host=host,
            machine=machine_identity() or host,
            pid=os.getpid(),
            job=job,
            restart=int(restart or 0) if job else 0,
        )

    def has_ended(self, observer: Owner) -> bool:
        """Return whether the process is known to have ended.

        That is the case if it ran on the observer's machine and no longer exists, or if its job has been restarted.
        """
        if self.machine == observer.machine and not is_running(self.pid):
            return True
        return bool(self.job) and self.job == observer.job and self.restart < observer.restart


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Content of a claim file.

    Attributes:
        owner: process that builds the shard; None if the file is not readable (yet).
        age_seconds: time since the last renewal.
    """

    owner: Owner | None
    age_seconds: float


@dataclass(frozen=True, kw_only=True)
class Claims:
    """The claims in an output folder.

    Attributes:
        out: output folder.
        stale_seconds: age at which a claim expires.
    """

    out: Path
    stale_seconds: float = STALE_SECONDS

    def __post_init__(self) -> None:
        if not self.stale_seconds > 0:
            raise ValueError(f"stale_seconds: must be positive, got {self.stale_seconds}")

    @property
    def folder(self) -> Path:
        """Folder of the claim files."""
        return self.out / CLAIMS_FOLDER

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Hold the claim on a shard for the duration of the ``with`` block.

        Args:
            name: file name of the shard.

        Yields:
            False, without a claim, if another process holds it.
        """
        if not self._acquire(name):
            yield False
            return
        path = self.folder / name
        try:
            with Heartbeat(path, self.stale_seconds):
                yield True
        finally:
            # The block's own error must not be replaced, for example on a full disk, where even the clock of the file
            # system cannot be read.
            with contextlib.suppress(OSError):
                # The claim has another owner if it was considered stale and taken over.
                if _read_owner(path) == Owner.current():
                    _unlink(path)

    def is_held(self, name: str) -> bool:
        """Return whether a process that appears to be alive is building the shard."""
        claim = self.read(name)
        return claim is not None and not self.is_stale(claim)

    def is_stale(self, claim: Claim) -> bool:
        """Return whether the claim has expired, has a time that its owner cannot have set, or its owner has ended."""
        ended = claim.owner is not None and claim.owner.has_ended(Owner.current())
        return ended or abs(claim.age_seconds) > self.stale_seconds

    def read(self, name: str, now: float | None = None) -> Claim | None:
        """Return the claim on a shard, or None if there is none.

        Args:
            name: file name of the shard.
            now: current time in seconds since the epoch; None reads the file system's clock, which requires write
                access.
        """
        path = self.folder / name
        try:
            owner, modified = _read_owner(path), path.stat().st_mtime
            # In the output folder, whose leftovers of killed processes every run removes.
            present = file_system_time(self.out) if now is None else now
        except OSError as error:
            if error.errno in _MISSING:  # the claim was removed, perhaps with the folder
                return None
            raise
        return Claim(owner=owner, age_seconds=present - modified)

    def names(self) -> list[str]:
        """Return the names of all claimed shards, including stale claims."""
        try:
            return sorted(path.name for path in self.folder.iterdir() if path.name.startswith("shard-"))
        except OSError as error:
            if error.errno in _MISSING:
                return []
            raise

    def read_all(self) -> dict[str, Claim]:
        """Return the claims that are not stale, by name of the shard."""
        names = self.names()
        now = file_system_time(self.out) if names else None
        found = {name: self.read(name, now) for name in names}
        return {name: claim for name, claim in found.items() if claim is not None and not self.is_stale(claim)}

    def remove_ended(self) -> None:
        """Remove the claims of processes on this machine that have ended, as far as possible, and an empty folder."""
        for name in self.names():
            with contextlib.suppress(OSError):
                owner = _read_owner(self.folder / name)
                if owner and owner.has_ended(Owner.current()):
                    _unlink(self.folder / name)
        with contextlib.suppress(OSError):  # not empty, or missing
            self.folder.rmdir()

    def _create_folder(self) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
        except FileExistsError:  # unlike that of an existing claim
            raise NotADirectoryError(errno.ENOTDIR, "not a folder; remove it", str(self.folder)) from None

    def _acquire(self, name: str) -> bool:
        path = self.folder / name
        # Two tasks may replace the same stale claim. In the worst case both continue and do the same work.
        for attempt in range(_MAX_ATTEMPTS):
            try:
                self._create_folder()
                _create(path)
                return True
            except FileExistsError:
                if self.is_held(name):
                    return False
                _unlink(path)
            except OSError as error:
                # Another process may just have removed the empty folder.
                if error.errno not in _MISSING or attempt == _MAX_ATTEMPTS - 1:
                    raise
        return False


def _create(path: Path) -> None:
    """Create the claim of this process; on an error, no incomplete claim stays, for which others would wait."""
    stream = path.open("x", encoding="utf-8")
    try:
        with stream:
            json.dump(asdict(Owner.current()), stream)
    except BaseException:
        with contextlib.suppress(OSError):
            _unlink(path)
        raise


def _read_owner(path: Path) -> Owner | None:
    """Return the owner that a claim file names; None if it is not written yet."""
    try:
        return Owner(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError):
        return None


def _unlink(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        if error.errno not in _MISSING:
            raise
