"""Logs in OUT/tasks: files of JSON lines, each written by a single process.

A task attempt writes one; a run on a single machine is task 0 of 1. The first line identifies the process, each further
line records a shard, and the last one how the attempt ended. A heartbeat renews the file's timestamp. Commands that had
to read shards, because they were not logged or have changed since, log them in files that only record shards.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from cmd_extract.run.finished import FinishedShard, file_stamp
from cmd_extract.run.plan import Share
from cmd_extract.shard.writer import WrittenShard
from cmd_extract.system.claims import Owner
from cmd_extract.system.liveness import STALE_SECONDS, Heartbeat

TASKS_FOLDER = "tasks"
RUNNING, DONE, FAILED, STOPPED, STALE = "running", "done", "failed", "stopped", "stale"
_SHARD_LINE = '{"event": "shard", "name": "'
"""Start of the lines that record a shard, followed by its file name."""


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
    """

    share: Share
    owner: Owner
    state: str
    reason: str
    started_seconds: float
    seconds: float
    written: tuple[WrittenShard, ...]


class ShardLog:
    """Log of shards that were read; the file is created when the first one is added.

    Args:
        out: output folder.
    """

    def __init__(self, out: Path) -> None:
        self._folder = out / TASKS_FOLDER
        self._stream: IO[str] | None = None

    def add(self, shard: FinishedShard) -> FinishedShard:
        """Record a shard that is in the output folder, and return it."""
        if self._stream is None:
            owner = Owner.current()
            self._folder.mkdir(exist_ok=True)
            name = f"read--{owner.host}-{owner.pid}-{time.time_ns()}.jsonl"
            self._stream = (self._folder / name).open("x", encoding="utf-8")
        self._write({"event": "shard", **shard.as_json()})
        return shard

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()

    def _write(self, event: dict[str, Any]) -> None:
        assert self._stream is not None
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()


class TaskLog(ShardLog):
    """Log of the current attempt, a context manager around the work that records how it ended.

    Args:
        out: output folder.
        share: the task.
        stale_seconds: age at which a heartbeat counts as stopped.
    """

    def __init__(self, out: Path, share: Share, stale_seconds: float = STALE_SECONDS) -> None:
        super().__init__(out)
        owner = Owner.current()
        self._folder.mkdir(exist_ok=True)
        name = f"{share.task:05d}-of-{share.num_tasks:05d}--{owner.host}-{owner.pid}-{time.time_ns()}.jsonl"
        self._path = self._folder / name
        self._stream = self._path.open("x", encoding="utf-8")
        self._heartbeat = Heartbeat(self._path, stale_seconds)
        self._write({"event": "start", "share": asdict(share), "owner": asdict(owner), "time": self._now()})

    def __enter__(self) -> TaskLog:
        self._heartbeat.__enter__()
        return self

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
                self.close()

    def _now(self) -> float:
        """Return the current time by the clock that stamps the file."""
        os.utime(self._path)
        return self._path.stat().st_mtime


def read_logged_shards(out: Path, names: Set[str]) -> dict[str, FinishedShard]:
    """Return the logged content of shards whose files are those that were logged.

    An entry counts if size and modification time match the file, and all matching entries agree on its checksum. The
    modification time matters because a process that was killed before it wrote its log may leave a shard of the same
    size.

    Args:
        out: output folder.
        names: file names of the shards to look for.

    Returns:
        The shards by file name; those that were not logged, or have changed since, are missing.
    """
    found: dict[str, FinishedShard] = {}
    disagreeing, stamps, folder = set(), {}, str(out)
    for name, line in _shard_lines(out, names):
        if name not in stamps:
            stamps[name] = file_stamp(folder, name)
        try:
            shard = FinishedShard.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError):  # a damaged line
            continue
        if shard.stamp != stamps[name]:
            continue
        if name in found and found[name].written != shard.written:
            disagreeing.add(name)
        found[name] = shard
    return {name: shard for name, shard in found.items() if name not in disagreeing}


def _shard_lines(out: Path, names: Set[str]) -> Iterator[tuple[str, str]]:
    """Yield file name and line of each logged shard; lines of other shards, the most in a large run, are not parsed."""
    for path in sorted((out / TASKS_FOLDER).glob("*.jsonl")):
        with path.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                # The last line of a killed process may be incomplete.
                if line.startswith(_SHARD_LINE) and line.endswith("\n"):
                    name = line[len(_SHARD_LINE) :].partition('"')[0]
                    if name in names:
                        yield name, line


def read_attempts(out: Path, now: float, stale_seconds: float) -> list[Attempt]:
    """Return all attempts at all tasks, oldest first.

    Args:
        out: output folder.
        now: current time by the clock of its file system.
        stale_seconds: age at which a heartbeat counts as stopped.
    """
    attempts = [_read(path, now, stale_seconds) for path in (out / TASKS_FOLDER).glob("*.jsonl")]
    return sorted((a for a in attempts if a), key=lambda a: a.started_seconds)


def _parse_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a log; damaged lines do not count, nor does the incomplete last one of a killed process."""
    for line in path.read_text("utf-8", errors="replace").splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            event = json.loads(line) if line.endswith("\n") else None
            if isinstance(event, dict) and "event" in event:
                yield event


def _read(path: Path, now: float, stale_seconds: float) -> Attempt | None:
    events = list(_parse_events(path))
    if not events or events[0]["event"] != "start":
        return None
    try:
        return _attempt_of(events, path.stat().st_mtime, now, stale_seconds)
    except (ValueError, KeyError, TypeError):  # a damaged line
        return None


def _attempt_of(events: Sequence[dict[str, Any]], alive: float, now: float, stale_seconds: float) -> Attempt:
    start, last = events[0], events[-1]
    ended = last["event"] == "end"
    silent = now - alive > stale_seconds
    return Attempt(
        share=Share(**start["share"]),
        owner=Owner(**start["owner"]),
        state=last["state"] if ended else STALE if silent else RUNNING,
        reason=last["reason"] if ended else "",
        started_seconds=start["time"],
        seconds=max(0.0, (last["time"] if ended else alive) - start["time"]),
        written=tuple(WrittenShard(**event["entry"]) for event in events if event["event"] == "shard"),
    )
