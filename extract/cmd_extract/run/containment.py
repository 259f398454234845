"""Containment of crashes, hangs and excessive memory use: videos are extracted in a child process.

The child extracts one video after the other and is replaced only after it has died. It leads a process group, so that
its FFmpeg processes are killed with it, and it dies with its parent. The worker of a run forks it; a library call,
whose process may have threads, starts a new interpreter.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.video import ExtractedVideo
from cmd_extract.errors import RunError, VideoError, run_error
from cmd_extract.run.job import Limits
from cmd_extract.sources.access import spool
from cmd_extract.sources.location import Source
from cmd_extract.system.interpreter import Interpreter
from cmd_extract.system.process import die_with_parent, limit_memory

T = TypeVar("T")

Extract = Callable[[Path, ExtractConfig, Path, FfmpegBinary], ExtractedVideo]
"""Signature of ``cmd_extract.decode.video.extract_video``."""

_DEATH_SECONDS = 1.0
_MAX_POLL_SECONDS = 3600.0  # the operating system takes no more than 24 days
_INTERRUPTS = {signal.SIGINT, signal.SIGTERM}


@dataclass(frozen=True, kw_only=True)
class _Child:
    pid: int
    process: ForkProcess | Interpreter
    connection: Connection


class ContainedExtractor(Generic[T]):
    """Extracts videos in a child process; a context manager that ends the child.

    Args:
        config: the extraction configuration.
        binary: the run's FFmpeg.
        limits: limits per video.
        extract: extracts one video; called in the child.
        new_interpreter: start a new interpreter instead of a fork, for processes with threads; ``extract`` is pickled.
    """

    def __init__(
        self,
        config: ExtractConfig,
        binary: FfmpegBinary,
        limits: Limits,
        extract: Callable[[Path, ExtractConfig, Path, FfmpegBinary], T],
        *,
        new_interpreter: bool = False,
    ) -> None:
        self._settings = (config, binary, limits)
        self._extract = extract
        self._new_interpreter = new_interpreter
        self._child: _Child | None = None
        self._killed = False

    def __enter__(self) -> ContainedExtractor[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def extract(self, source: Source, workdir: Path) -> T:
        """Extract one video, see ``extract_video``; copy it to ``workdir`` first unless it is a local file.

        Raises:
            VideoError: as raised by ``extract``, or with stage ``timeout``, ``memory``, ``crash`` or ``error``.
            RunError: the working folder cannot be written, or a process cannot be started.
        """
        child = self._child = self._child or self._start()
        if self._killed:
            self.kill()  # it was called while the child was started
        limits = self._settings[2]
        try:
            child.connection.send((source, workdir))
            if not _wait_for_reply(child.connection, limits.timeout_seconds):
                self._end()
                raise VideoError("timeout", f"not finished after {limits.timeout_seconds:g} s (--timeout)")
            reply: T | VideoError | RunError = child.connection.recv()
        except (EOFError, OSError):
            raise VideoError("crash", self._cause_of_death(child)) from None
        if not isinstance(reply, VideoError | RunError):
            return reply
        if isinstance(reply, RunError) or reply.stage == "memory":
            self._end()  # the state of its heap is unknown
        raise reply

    def kill(self) -> None:
        """End for good; unlike leaving the context, this may be called while another thread waits for a reply."""
        self._killed = True
        child = self._child
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def _start(self) -> _Child:
        if self._new_interpreter:
            interpreter = Interpreter(_serve_videos, self._extract, *self._settings)
            return _Child(pid=interpreter.pid, process=interpreter, connection=interpreter.connection)
        # Forking takes milliseconds, because all modules are already loaded.
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, ours, self._extract, *self._settings), daemon=True)
        with interrupts_blocked():
            process.start()
        theirs.close()
        child_pid = process.pid
        assert child_pid, "the process has been started"
        with contextlib.suppress(OSError):  # the child does the same; either may be first
            os.setpgid(child_pid, child_pid)
        return _Child(pid=child_pid, process=process, connection=ours)

    def _cause_of_death(self, child: _Child) -> str:
        child.process.join(_DEATH_SECONDS)
        code = child.process.exitcode
        self._end()
        if code is not None and code < 0:
            return f"the extracting process was killed by {signal.Signals(-code).name}"
        return f"the extracting process exited with status {code}"

    def _end(self) -> None:
        if self._child is None:
            return
        child, self._child = self._child, None
        child.connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.process.join()


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Block SIGINT and SIGTERM; processes started in the block never receive them and must be ended by their parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for_reply(connection: Connection, seconds: float) -> bool:
    """Wait until there is something to receive, for at most ``seconds``, which may be infinite."""
    end = time.monotonic() + seconds
    while not connection.poll(max(0.0, min(end - time.monotonic(), _MAX_POLL_SECONDS))):
        if time.monotonic() >= end:
            return False
    return True


def _serve(
    connection: Connection,
    others_end: Connection,
    extract: Callable[..., Any],
    config: ExtractConfig,
    binary: FfmpegBinary,
    limits: Limits,
) -> None:
    """Main function of a forked child."""
    worker = os.getppid()
    die_with_parent()
    os.setpgid(0, 0)
    others_end.close()
    if os.getppid() != worker:  # it died before die_with_parent took effect
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
    _serve_videos(connection, extract, config, binary, limits)


def _serve_videos(
    connection: Connection,
    extract: Callable[..., Any],
    config: ExtractConfig,
    binary: FfmpegBinary,
    limits: Limits,
) -> None:
    """Extract one video after the other until the parent closes the connection."""
    limit_memory(limits.max_memory_mb)
    while True:
        try:
            source, workdir = connection.recv()
            connection.send(_attempt(extract, source, workdir, config, binary, limits))
        except (EOFError, OSError):  # of the connection; errors of videos are caught in _attempt
            return


def _attempt(
    extract: Callable[..., Any],
    source: Source,
    workdir: Path,
    config: ExtractConfig,
    binary: FfmpegBinary,
    limits: Limits,
) -> Any:
    try:
        return extract(spool(source, workdir, limits.sources), config, workdir, binary)
    except (VideoError, RunError) as error:
        return error
    except MemoryError:
        return VideoError("memory", f"needs more than {limits.max_memory_mb} MiB (--max-memory-mb)")
    except OSError as error:
        # Problems of the source are VideoErrors; this one concerns the run's own files and processes.
        return run_error(error, f"{workdir}")
    except Exception as error:
        # A bug that one video triggers must not end the run; --max-failures stops a run in which all videos fail.
        return VideoError("error", f"{type(error).__name__}: {error}")
