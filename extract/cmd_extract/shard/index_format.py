"""Format of the index: names of the columns of its table, and checks of ``index.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cmd_extract import schema
from cmd_extract.errors import ShardError

# Columns of the table. S shards, R manifest rows, V videos, K keyframes of all videos.
SHARD_SHA256 = "shard/sha256"  # (S,)
SHARD_ROWS_HASH = "shard/rows_hash"  # (S,)
SHARD_COUNTS = "shard/counts"  # (S, 4): size in bytes, frames, failures, damaged videos
SHARD_FIRST_ROW = "shard/first_row"  # (S + 1,)
SHARD_FIRST_VIDEO = "shard/first_video"  # (S + 1,)
VIDEO_ROW = "video/row"  # (V,), and so on
VIDEO_FRAME_COUNT = "video/frame_count"
VIDEO_FPS = "video/fps"
VIDEO_SOURCE_SIZE = "video/source_size"
VIDEO_FINGERPRINT = "video/fingerprint"  # the 32 bytes of the SHA-256
VIDEO_FIRST_KEYFRAME = "video/first_keyframe"  # (V + 1,)
KEYFRAME_INDEX = "keyframe/frame_index"  # (K,)
VIDEO_ID = "video/id"  # UTF-8 of all ids
VIDEO_ID_FIRST = "video/id_first"  # (V + 1,), where each id begins
PLAIN_COLUMNS: dict[str, tuple[Any, ...]] = {  # type of the items, and further dimensions
    SHARD_SHA256: ("S64",),
    SHARD_ROWS_HASH: ("S64",),
    SHARD_COUNTS: (np.int64, 4),
    SHARD_FIRST_ROW: (np.int64,),
    SHARD_FIRST_VIDEO: (np.int64,),
    VIDEO_ROW: (np.int64,),
    VIDEO_FRAME_COUNT: (np.int64,),
    VIDEO_FPS: (np.float64,),
    VIDEO_SOURCE_SIZE: (np.int32, 2),
    VIDEO_FINGERPRINT: (np.uint8, 32),
    VIDEO_FIRST_KEYFRAME: (np.int64,),
    VIDEO_ID_FIRST: (np.int64,),
    KEYFRAME_INDEX: (np.int32,),
    VIDEO_ID: (np.uint8,),
}
VIDEO_COLUMNS = (VIDEO_ROW, VIDEO_FRAME_COUNT, VIDEO_FPS, VIDEO_SOURCE_SIZE, VIDEO_FINGERPRINT)
"""Columns with one item per video."""
RAGGED = {VIDEO_FIRST_KEYFRAME: KEYFRAME_INDEX, VIDEO_ID_FIRST: VIDEO_ID}
"""Columns that say where the items of each video begin, and the columns of these items."""
# Texts with few values: codes, and the values by code.
CODEC = "codec"  # of videos; the others are of manifest rows
LABEL, GROUP, SPLIT = "label", "group", "split/{}"
CODES = "{}/code"  # uint32
FIRST = "{}_first"  # of a text column, (N + 1,) int64
VALUES = "{}/values"  # (bytes,) uint8
ATTR_DATA_HASH = "data_hash"

TOTALS = ("videos", "frames", "failures", "damaged", "size_bytes")
_HEAD = {
    "config": dict, "config_hash": str, "data_hash": str, "totals": dict, "shards": int, "rows": int, "videos": int,
    "split_columns": list, "table": dict,
}  # fmt: skip


def read_head(folder: Path, name: str) -> dict[str, Any]:
    """Return the content of ``index.json`` of an output folder, or of another index.

    Raises:
        ShardError: the file is missing, invalid, or of another format version.
    """
    path = folder / name
    try:
        head = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if (folder / schema.PREVIOUS_INDEX_NAME).exists():
            raise ShardError(
                f"{folder}: a retry, repair or run that replaces shards is in progress or was interrupted; once it has "
                "ended, run the same command again to complete it"
            ) from None
        raise ShardError(
            f"{folder}: no {name} found; pass a folder that `cmd-extract run` has completed (to continue "
            "an interrupted extraction, run the same command again)"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise ShardError(f"{path}: cannot be read ({error}); {rebuild_hint(folder)}") from None
    return check_head(f"{path}", head, rebuild_hint(folder))


def check_head(path: str, head: Any, remedy: str) -> dict[str, Any]:
    """Check the content of ``index.json`` and return it.

    Args:
        path: path or URL, for error messages.
        head: the content.
        remedy: what to do if it cannot be used, for error messages.

    Raises:
        ShardError: it is of another format version, incomplete or edited.
    """
    if not isinstance(head, dict):
        raise ShardError(f"{path}: not an index of shards; {remedy}")
    version = head.get("version")
    if type(version) is int and version > schema.INDEX_VERSION:
        remedy = "update this project to read it"
    if head.get("format") != schema.FORMAT_NAME or version != schema.INDEX_VERSION:
        raise ShardError(
            f"{path}: format {head.get('format')!r} version {version}, this release reads version "
            f"{schema.INDEX_VERSION} of {schema.FORMAT_NAME!r}; {remedy}"
        )
    table: Any = head.get("table")
    kinds = {"name": str, "sha256": str, "size_bytes": int}
    complete = all(type(head.get(key)) is kind for key, kind in _HEAD.items())
    numbers = [head.get(key) for key in ("shards", "rows", "videos")] + [
        head["totals"].get(key) for key in TOTALS if isinstance(head.get("totals"), dict)
    ]
    complete = complete and all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
    complete = complete and all(type(name) is str for name in head["split_columns"])
    if not complete or not all(type(table.get(key)) is kind for key, kind in kinds.items()):
        raise ShardError(f"{path}: incomplete or edited; {remedy}")
    if table["name"] != Path(table["name"]).name:
        raise ShardError(f"{path}: {table['name']!r} is not a file name; {remedy}")
    checked: dict[str, Any] = head
    return checked


def rebuild_hint(folder: Path) -> str:
    """Return the words that say how to rebuild the index of a folder."""
    return f"run `cmd-extract merge {folder}` to rebuild it, without extracting again"


def read_checksums(table: Path, head: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each file that an index describes, by file name, from its table and ``index.json``."""
    with h5py.File(table, "r", locking=False) as file:
        return list_checksums(head, file[SHARD_SHA256][:])


def list_checksums(head: Mapping[str, Any], shards: NDArray[np.bytes_]) -> dict[str, str]:
    """Return the SHA-256 of the table and of each shard, by file name."""
    table = {head["table"]["name"]: head["table"]["sha256"]}
    return table | {schema.SHARD_PATTERN.format(n): sha256.decode() for n, sha256 in enumerate(shards.tolist())}
