"""Exceptions of the extractor; every message says what is wrong and what to do."""

from __future__ import annotations


class ShardError(ValueError):
    """A shard, or a folder of shards, that cannot be used as it is; the message says why and what to do."""


class ManifestError(ValueError):
    """A manifest, or what one is to be made of, that cannot be used; the message says where, why and what to do."""


class VideoError(Exception):
    """One video that cannot be extracted.

    Attributes:
        stage: one of ``STAGES``: where it failed, or how; ``error`` is an exception that nobody foresaw.
        reason: one line for the failure list.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(stage, reason)
        self.stage = stage
        self.reason = " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"


class FfmpegError(RuntimeError):
    """No usable FFmpeg binary, or one that failed."""


class BitstreamError(ValueError):
    """A header that does not say what it should."""


class FailureLimitError(Exception):
    """More videos failed than the user allows."""


class OutputError(RuntimeError):
    """Files of the run itself cannot be written; no fault of any video.

    Args:
        what: where, and why.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)

    def __str__(self) -> str:
        return (
            f"{super().__str__()}. Nothing that is finished is lost: make room or name another --scratch folder, then "
            "run the same command again to continue"
        )


class SlurmError(RuntimeError):
    """Slurm is not there, or refuses."""


class SynthesisError(RuntimeError):
    """A synthetic video could not be encoded; the message ends with FFmpeg's own last lines."""
