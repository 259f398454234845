"""Helpers that create empty video files and lists."""

from __future__ import annotations

import os
from pathlib import Path

AWKWARD_NAMES = [
    "plain.mp4",
    " spaces at both ends .mp4 ",
    'quote"d, comma.mp4',
    "new\nline.mp4",
    "lone\rreturn.mp4",
    "crlf\r\n.mp4",
    "Ünïcödé 视频.mp4",
    os.fsdecode(b"latin1-\xe9\xff.mp4"),
    "-dash%d.mp4",
]


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path
