"""What every worker of a run needs to know."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.run.limits import Limits


@dataclass(frozen=True, kw_only=True)
class RunJob:
    """One run.

    Attributes:
        root: folder that relative manifest paths start from.
        out: output folder.
        scratch: folder in which each run makes one of its own for temporary files.
        config: the extraction configuration.
        binary: the run's FFmpeg.
        limits: what one video may cost.
        manifest: the manifest file, for the record.
    """

    root: Path
    out: Path
    scratch: Path
    config: ExtractConfig
    binary: FfmpegBinary
    limits: Limits = field(default_factory=Limits)
    manifest: Path | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Without what is kept below: a worker, perhaps on another machine, tells the versions it works with itself.
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @cached_property
    def described(self) -> dict[str, Any]:
        """The configuration as stored."""
        return self.config.describe(self.binary.version)

    @cached_property
    def software(self) -> dict[str, str]:
        """Name to version of the programs whose work ends up in a shard."""
        packages = ("av", "h5py", "hdf5plugin", "motion-vector-extractor", "numpy", "simplejpeg")
        found = {"ffmpeg": self.binary.version, "hdf5": h5py.version.hdf5_version}
        for package in packages:
            # mvextractor exists for x86-64 Linux only.
            with contextlib.suppress(PackageNotFoundError):
                found[package] = version(package)
        return found
