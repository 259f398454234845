"""Offline extraction of videos into HDF5 shards of frames, keyframes and motion grids.

Public names; nothing else of the package is promised to stay:

- `open_shards` opens the shards of an extraction (`Shards`): its `videos` (`VideoEntry`), and the clip, keyframe and
  motion (`MotionGrid`) of any of them. `ShardSet` gives the same data undecoded.
- `read_motion` reads the motion of one video file without a shard (`MotionReader`): frame by frame (`MotionFrame`), or
  all of it (`VideoMotion`, `MotionInfo`). `ExtractConfig` holds the settings, `Limits` time and memory limits.
- `read_manifest` and `write_manifest` handle manifests (`VideoRecord`).
- `VideoError`, `ShardError`, `ManifestError` and `FfmpegError` are raised; `cmd_extract.errors` has all exceptions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmd_extract.system.lazy import lazy_attributes

if TYPE_CHECKING:
    from cmd_extract.api.motion import MotionReader, VideoMotion, read_motion
    from cmd_extract.api.shards import Shards, open_shards
    from cmd_extract.config import ExtractConfig
    from cmd_extract.decode.motion import MotionFrame, MotionInfo
    from cmd_extract.errors import FfmpegError, ManifestError, ShardError, VideoError
    from cmd_extract.manifest.records import read_manifest, write_manifest
    from cmd_extract.run.job import Limits
    from cmd_extract.schema import MotionGrid, VideoEntry, VideoRecord
    from cmd_extract.shard.reader import ShardSet

__all__ = [
    "ExtractConfig",
    "FfmpegError",
    "Limits",
    "ManifestError",
    "MotionFrame",
    "MotionGrid",
    "MotionInfo",
    "MotionReader",
    "ShardError",
    "ShardSet",
    "Shards",
    "VideoEntry",
    "VideoError",
    "VideoMotion",
    "VideoRecord",
    "open_shards",
    "read_manifest",
    "read_motion",
    "write_manifest",
]

__getattr__, __dir__ = lazy_attributes(
    "cmd_extract",
    {
        **dict.fromkeys(("FfmpegError", "ManifestError", "ShardError", "VideoError"), "cmd_extract.errors"),
        **dict.fromkeys(("MotionGrid", "VideoEntry", "VideoRecord"), "cmd_extract.schema"),
        **dict.fromkeys(("read_manifest", "write_manifest"), "cmd_extract.manifest.records"),
        **dict.fromkeys(("MotionReader", "VideoMotion", "read_motion"), "cmd_extract.api.motion"),
        **dict.fromkeys(("MotionFrame", "MotionInfo"), "cmd_extract.decode.motion"),
        **dict.fromkeys(("Shards", "open_shards"), "cmd_extract.api.shards"),
        "ExtractConfig": "cmd_extract.config",
        "Limits": "cmd_extract.run.job",
        "ShardSet": "cmd_extract.shard.reader",
    },
)
