"""Handling of Ctrl-C and SIGTERM: both end a run cleanly, and neither is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_RESEND_SECONDS = 0.05


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, which schedulers send, as on Ctrl-C.

    Python raises the exception wherever the main thread is. In a callback of the interpreter itself (a weak reference
    callback, a fork hook) it is printed and dropped, and the run would continue. The signal is then sent again.
    """

    def resend(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(_RESEND_SECONDS, os.kill, (os.getpid(), signal.SIGINT)).start()
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
