"""Logs of task attempts: one file of JSON lines per attempt in OUT/tasks, written by a single process.

The first line identifies the process, each further line records a shard, and the last one how the attempt ended. A
heartbeat renews the file's timestamp.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from cmd_extract.cluster.shares import Share
from cmd_extract.shard.writer import WrittenShard
from cmd_extract.system.claims import Owner
from cmd_extract.system.liveness import Heartbeat

TASKS_FOLDER = "tasks"
RUNNING, DONE, FAILED, STOPPED, STALE = "running", "done", "failed", "stopped", "stale"
_SHARD_FIELDS = tuple(f.name for f in fields(WrittenShard))


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a task, read from its log.

    Attributes:
        share: the task.
        owner: the process.
        state: ``done``, ``failed`` or ``stopped`` as recorded at the end; before that ``running``, or ``stale`` if the
            heartbeat has stopped.
        reason: cause of the failure, otherwise empty.
        started_seconds: start time in seconds since the epoch, by the file system's clock; host clocks may differ.
        seconds: duration so far.
        written: shards built by the attempt.
        mtimes_ns: modification times of their files, by name.
    """

    share: Share
    owner: Owner
    state: str
    reason: str
    started_seconds: float
    seconds: float
    written: tuple[WrittenShard, ...]
    mtimes_ns: dict[str, int]


class TaskLog:
    """Log of the current attempt, a context manager around the work that records how it ended.

    Args:
        out: output folder.
        share: the task.
        stale_seconds: age at which a heartbeat counts as stopped.
    """

    def __init__(self, out: Path, share: Share, stale_seconds: float) -> None:
        owner, folder = Owner.current(), out / TASKS_FOLDER
        folder.mkdir(exist_ok=True)
        name = f"{share.task:05d}-of-{share.num_tasks:05d}--{owner.host}-{owner.pid}-{time.time_ns()}.jsonl"
        self._path = folder / name
        self._stream = self._path.open("x", encoding="utf-8")
        self._heartbeat = Heartbeat(self._path, stale_seconds)
        self._write({"event": "start", "share": asdict(share), "owner": asdict(owner), "time": self._now()})

    def __enter__(self) -> TaskLog:
        self._heartbeat.__enter__()
        return self

    def add(self, shard: WrittenShard) -> None:
        """Record a shard that is now in the output folder."""
        file = self._path.parents[1] / shard.name
        self._write({"event": "shard", **asdict(shard), "mtime_ns": file.stat().st_mtime_ns})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heartbeat.__exit__()
        stopped = kind is not None and issubclass(kind, (KeyboardInterrupt, GeneratorExit))
        state = DONE if kind is None else STOPPED if stopped else FAILED
        reason = f"{error}" or type(error).__name__ if state == FAILED else ""
        try:
            self._write({"event": "end", "state": state, "reason": reason, "time": self._now()})
        except OSError:
            if kind is None:  # otherwise the block's own error, perhaps a full disk, is the one to report
                raise
        finally:
            with contextlib.suppress(OSError):
                self._stream.close()

    def _now(self) -> float:
        """Return the current time by the clock that stamps the file."""
        os.utime(self._path)
        return self._path.stat().st_mtime

    def _write(self, event: dict[str, Any]) -> None:
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()


def read_attempts(out: Path, now: float, stale_seconds: float) -> list[Attempt]:
    """Return all attempts at all tasks, oldest first.

    Args:
        out: output folder.
        now: current time by the clock of its file system.
        stale_seconds: age at which a heartbeat counts as stopped.
    """
    attempts = [_read(path, now, stale_seconds) for path in (out / TASKS_FOLDER).glob("*.jsonl")]
    return sorted((a for a in attempts if a), key=lambda a: a.started_seconds)


def _read(path: Path, now: float, stale_seconds: float) -> Attempt | None:
    lines = path.read_text("utf-8").splitlines(keepends=True)
    # The last line of a killed process may be incomplete.
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    if not events:
        return None
    start, last, alive = events[0], events[-1], path.stat().st_mtime
    ended = last["event"] == "end"
    silent = now - alive > stale_seconds
    return Attempt(
        share=Share(**start["share"]),
        owner=Owner(**start["owner"]),
        state=last["state"] if ended else STALE if silent else RUNNING,
        reason=last["reason"] if ended else "",
        started_seconds=start["time"],
        seconds=max(0.0, (last["time"] if ended else alive) - start["time"]),
        written=tuple(
            WrittenShard(**{name: event[name] for name in _SHARD_FIELDS})
            for event in events
            if event["event"] == "shard"
        ),
        mtimes_ns={event["name"]: event["mtime_ns"] for event in events if event["event"] == "shard"},
    )
