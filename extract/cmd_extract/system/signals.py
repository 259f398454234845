"""Ctrl-C and SIGTERM: both end a run cleanly, and neither gets lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN_SECONDS = 0.05


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGTERM, which schedulers send, raises KeyboardInterrupt like Ctrl-C.

    Python raises it wherever the main thread happens to be. Where that is a callback of the interpreter's own (a weak
    reference that dies, a hook around a fork) the exception is printed and dropped, and the run would go on as if
    nothing had been said; it is sent again instead.
    """

    def resend(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            hook(unraisable)

    hook = sys.unraisablehook
    handlers = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    sys.unraisablehook = resend
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)
