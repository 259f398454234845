"""Limits on reading sources that are not local files."""

from __future__ import annotations

from dataclasses import dataclass

from cmd_extract.system.validation import require_range


@dataclass(frozen=True, kw_only=True)
class SourceLimits:
    """Limits on reading remote files and members of tar files.

    Attributes:
        max_mb: size in MiB of a video that may be copied to the scratch folder.
        timeout_seconds: time limit of a request for at most ``remote.REQUEST_BYTES``.
        retries: how often a failed request is repeated.
    """

    max_mb: int = 8192
    timeout_seconds: float = 60.0
    retries: int = 4

    def __post_init__(self) -> None:
        require_range(self, "max_mb", ge=1)
        require_range(self, "timeout_seconds", gt=0, le=3600)
        require_range(self, "retries", ge=0, le=100)
