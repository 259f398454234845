"""Settings of a run that every worker needs."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.schema import hash_json
from cmd_extract.sources.limits import SourceLimits
from cmd_extract.sources.location import Root
from cmd_extract.system.validation import require_range

_MAX_MEMORY_MB = 1 << 40  # more than any machine has, and a number that the operating system accepts
_PACKAGES = ("av", "h5py", "hdf5plugin", "numpy", "simplejpeg")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits per video; a video that exceeds one counts as failed. They have no other effect on a shard.

    Attributes:
        timeout_seconds: wall time from opening a video to its last vector; may be infinite.
        max_memory_mb: memory in MiB that the extracting process may add for one video; FFmpeg may use as much again.
        sources: limits on reading remote files and members of tar files.
    """

    timeout_seconds: float = 3600.0
    max_memory_mb: int = 4096
    sources: SourceLimits = field(default_factory=SourceLimits)

    def __post_init__(self) -> None:
        require_range(self, "timeout_seconds", gt=0)
        require_range(self, "max_memory_mb", ge=64, le=_MAX_MEMORY_MB)


@dataclass(frozen=True, kw_only=True)
class RunJob:
    """Settings of one run; can be pickled.

    Attributes:
        root: folder, or URL prefix, to which paths in the manifest are relative.
        out: output folder.
        scratch: folder in which each run creates a temporary folder.
        config: settings that determine the content of shards.
        binary: the run's FFmpeg.
        limits: limits per video.
        manifest: manifest file, recorded in ``run.json``.
        recorded_ffmpeg: version of the FFmpeg that the configuration names, if that of the run is accepted instead.
    """

    root: Root
    out: Path
    scratch: Path
    config: ExtractConfig
    binary: FfmpegBinary
    limits: Limits = field(default_factory=Limits)
    manifest: Path | None = None
    recorded_ffmpeg: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Without cached properties: a worker, perhaps on another machine, determines its own software versions.
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @cached_property
    def described(self) -> dict[str, Any]:
        """The configuration as stored, see ``ExtractConfig.describe``."""
        return self.config.describe(self.recorded_ffmpeg or self.binary.version)

    @cached_property
    def config_hash(self) -> str:
        """Hash of ``described``."""
        return hash_json(self.described)

    @cached_property
    def software(self) -> dict[str, str]:
        """Versions, by name, of the programs that affect the content of a shard."""
        found = {"ffmpeg": self.binary.version, "hdf5": h5py.version.hdf5_version}
        return found | {package: version(package) for package in _PACKAGES}
