"""A new Python process that runs one function and talks to its parent over a connection.

Unlike a fork, it shares nothing with the parent, which may have threads, a GPU and large arrays; unlike a process of
``multiprocessing``, it does not import the parent's main module, which need not be importable (a notebook) or protected
by ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from cmd_extract.system.process import watch_parent

_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from cmd_extract.system.interpreter import run_target; run_target({fd}, {pid})"
)


class Interpreter:
    """A running process; it leads a process group and ends soon after its parent.

    Args:
        target: function to run, defined in an importable module; its first argument is the process's connection.
        arguments: further arguments; they are pickled.

    Attributes:
        pid: process id.
        connection: the parent's end of the connection.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self.connection, theirs = Pipe()
        program = _PROGRAM.format(path=sys.path, fd=theirs.fileno(), pid=os.getpid())
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        except OSError:
            self.connection.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        # It may have ended already; waiting for a reply then raises EOFError.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((target, arguments))

    @property
    def exitcode(self) -> int | None:
        """Exit code, negative for a signal; None if the process is running."""
        return self._process.poll()

    def join(self, seconds: float | None = None) -> None:
        """Wait for the end of the process, at most ``seconds``."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)


def run_target(fd: int, parent: int) -> None:
    """Receive a function and its arguments over a file descriptor, and run it; the main program of an ``Interpreter``.

    Args:
        fd: file descriptor of the process's end of the connection.
        parent: process id of the parent.
    """
    watch_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    with Connection(fd) as connection:
        target, arguments = connection.recv()
        target(connection, *arguments)
