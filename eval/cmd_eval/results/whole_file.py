"""Atomic writes of result files.

Extraction has its own (``cmd_extract.system.files``), whose temporary names record host and process, so that many hosts
can clean up after each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_when_whole(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Gives a name beside ``path`` to write under; at the end the file is synced and renamed to ``path``.

    If the block fails, what it has written is removed, and what was at ``path`` stays.

    Args:
        path: the file to make or replace; its folder is made.
        temporary: the name beside it, where no other process writes under that; None for one of this process alone,
            which a SIGKILL leaves behind.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays last: libraries tell by it what to write.
    temporary = temporary or path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
