"""Offline extraction of videos into HDF5 shards of frames, keyframes and motion grids.

Public names: `ShardSet` opens the shards of an extraction (its `videos` are `VideoEntry`, its motion is `MotionGrid`);
`read_manifest` and `write_manifest` handle manifests (`VideoRecord`); `ShardError`, `ManifestError` and `VideoError`
are what they raise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmd_extract.system.lazy import lazy_attributes

if TYPE_CHECKING:
    from cmd_extract.errors import ManifestError, ShardError, VideoError
    from cmd_extract.manifest.records import read_manifest, write_manifest
    from cmd_extract.schema import MotionGrid, VideoEntry, VideoRecord
    from cmd_extract.shard.reader import ShardSet

__all__ = [
    "ManifestError",
    "MotionGrid",
    "ShardError",
    "ShardSet",
    "VideoEntry",
    "VideoError",
    "VideoRecord",
    "read_manifest",
    "write_manifest",
]

__getattr__, __dir__ = lazy_attributes(
    "cmd_extract",
    {
        **dict.fromkeys(("ManifestError", "ShardError", "VideoError"), "cmd_extract.errors"),
        **dict.fromkeys(("MotionGrid", "VideoEntry", "VideoRecord"), "cmd_extract.schema"),
        **dict.fromkeys(("read_manifest", "write_manifest"), "cmd_extract.manifest.records"),
        "ShardSet": "cmd_extract.shard.reader",
    },
)
