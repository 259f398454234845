"""What an FFmpeg process has said: errors to tell, and signs of a damaged source."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path

LOG_LEVEL = "level+warning"
"""FFmpeg's ``-loglevel``, by which every line names its level. Damage that is concealed is only warned of."""

_KEPT_ERRORS = 500
_LINE_BYTES = 4096
_ADDRESS = re.compile(r"\[[^\]]* @ 0x[0-9a-f]+\] ?")
_LEVEL = re.compile(r"\[(panic|fatal|error|warning|info|verbose|debug)\] ?")
_ERRORS = ("panic", "fatal", "error")
_DAMAGE = re.compile(r"corrupt decoded frame|corrupt input packet|concealing")


@dataclass(frozen=True, kw_only=True)
class FfmpegLog:
    """What matters of a log.

    Attributes:
        errors: the last lines of errors, without the memory addresses that would differ from run to run.
        damage: whether there was an error, or a warning that something damaged was decoded.
    """

    errors: tuple[str, ...]
    damage: bool


def read_log(path: Path) -> FfmpegLog:
    """Reads what FFmpeg has written with ``LOG_LEVEL``; a garbled source may make it long, so line by line."""
    errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
    damage, level = False, "error"
    with path.open("rb") as stream:
        while raw := stream.readline(_LINE_BYTES):
            line = _ADDRESS.sub("", raw.decode(errors="replace")).strip()
            named = _LEVEL.match(line)
            # Lines without a level go on with what the one before says.
            level, text = (named[1], line[named.end() :]) if named else (level, line)
            if text and level in _ERRORS:
                errors.append(text)
            elif level == "warning" and _DAMAGE.search(text):
                damage = True
    return FfmpegLog(errors=tuple(errors), damage=damage or bool(errors))
