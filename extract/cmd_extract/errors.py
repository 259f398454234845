"""Exceptions of the extractor. Every message names the cause and says what to do."""

from __future__ import annotations

import errno
import os
from typing import Literal, get_args

Stage = Literal["open", "probe", "transcode", "motion", "timeout", "memory", "crash", "error"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""Where or how the extraction of a video failed; ``error`` is an unexpected exception."""


class ShardError(ValueError):
    """A shard or a folder of shards cannot be used as it is."""


class ManifestError(ValueError):
    """A manifest, or the source of one, cannot be used."""


class VideoError(Exception):
    """One video cannot be extracted.

    Attributes:
        stage: where or how the extraction failed.
        reason: one line for ``failures.csv``.
        path: the video file; None if the caller knows it, as in ``failures.csv``.
    """

    def __init__(self, stage: Stage, reason: str, path: str | None = None) -> None:
        super().__init__(stage, reason, path)
        self.stage = stage
        self.reason = " ".join(reason.split())
        self.path = path

    def __str__(self) -> str:
        return f"{self.path + ': ' if self.path else ''}{self.stage}: {self.reason}"

    @property
    def is_missing(self) -> bool:
        """Whether the source does not exist."""
        return isinstance(self.__cause__, FileNotFoundError)

    def of(self, path: str) -> VideoError:
        """Return the same error with the path of the video in its message."""
        return VideoError(self.stage, self.reason, path)


class FfmpegError(RuntimeError):
    """FFmpeg is missing, too old, or failed."""


class BitstreamError(ValueError):
    """The header of a video stream is invalid or truncated."""


class FailureLimitError(RuntimeError):
    """More videos failed than ``--max-failures`` allows.

    Args:
        failed: number of failed videos so far.
        total: number of videos, if known.
    """

    exit_code = 4

    def __init__(self, failed: int, total: int | None = None) -> None:
        super().__init__(failed, total)
        self.failed, self.total = failed, total

    def __str__(self) -> str:
        count = f"{self.failed} videos" if self.total is None else f"{self.failed} of {self.total} videos"
        return (
            f"Stopped: {count} failed, more than --max-failures allows. Finished shards are kept. Fix the videos or "
            "raise the limit, then run the same command again to continue"
        )


class RunError(RuntimeError):
    """The machine prevents the run from continuing; no video is at fault.

    Args:
        problem: what failed and why.
    """

    advice = "Run the same command again to continue"

    def __init__(self, problem: str) -> None:
        super().__init__(problem)

    def __str__(self) -> str:
        return f"{super().__str__()}. Finished shards are kept. {self.advice}"


class OutputError(RunError):
    """Output or scratch files cannot be written because there is no room for them.

    Args:
        problem: the folder and the error.
    """

    advice = "Free some disk space or choose another --scratch folder, then run the same command again to continue"


NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Error numbers of a disk or folder that takes no more files."""


def run_error(error: OSError, place: str) -> RunError:
    """Return the error with which a run ends if an operation on its own files or processes fails.

    Args:
        error: the error.
        place: the folders that the run writes to.
    """
    if error.errno in NO_ROOM:
        return OutputError(f"cannot write in {place}: {os.strerror(error.errno)}")
    text = " ".join(str(error).split())  # HDF5's messages have several lines
    return RunError(f"{place}: {text or type(error).__name__}")


class CacheError(RuntimeError):
    """A remote shard cannot be read through the cache."""


class SlurmError(RuntimeError):
    """Slurm is not available or rejected a command."""


class SynthesisError(RuntimeError):
    """A synthetic video could not be encoded; the message ends with the last lines of FFmpeg's log."""
