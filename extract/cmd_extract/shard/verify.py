"""Proves that an output folder is whole: checksums, counts, offsets, pictures, grids, sources."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 -- registers the filter that motion is compressed with
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from cmd_extract import schema
from cmd_extract.decode.source import fingerprint
from cmd_extract.errors import VideoError
from cmd_extract.schema import DamagedRow, FailedRow, VideoRecord
from cmd_extract.shard.reader import ShardReader, read_index

_FRAMES = 256


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        shard: number of the shard concerned; None for the files beside the shards.
        what: one line for the user.
    """

    shard: int | None
    what: str


def verify_folder(
    folder: Path,
    *,
    decode: bool = True,
    sources: Sequence[VideoRecord] | None = None,
    resolve: Callable[[VideoRecord], Path] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Problem]:
    """Checks everything that ``cmd-extract run`` has written in a folder.

    Args:
        folder: the output folder.
        decode: whether to decode every JPEG, which takes most of the time.
        sources: manifest rows whose files to compare with the fingerprints; files that are gone do not count.
        resolve: where the file of a row lies.
        progress: told how many of how many shards are done.

    Raises:
        ShardError: there is no index to compare with.
    """
    index = read_index(folder)
    paths = {r.row: resolve(r) for r in sources} if sources is not None and resolve is not None else {}
    found: list[Problem] = []
    failures: list[FailedRow] = []
    damaged: list[DamagedRow] = []
    for number, entry in enumerate(index["shards"]):
        path = folder / entry["name"]
        problems: list[str] = []
        try:
            problems += itertools.islice(_check_shard(path, entry, index["config_hash"], decode, paths), 20)
            failures += ShardReader(path).failures()
            damaged += damaged_of(path)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            problems.append(f"cannot be read: {error}")
        found += [Problem(shard=number, what=f"{path.name}: {problem}") for problem in problems]
        progress(number + 1, len(index["shards"]))
    if not found:
        found += [Problem(shard=None, what=what) for what in _check_folder(folder, index, failures, damaged)]
    return found


def _check_shard(
    path: Path, entry: dict[str, Any], config_hash: str, decode: bool, sources: dict[int, Path]
) -> Iterator[str]:
    if not path.exists():
        yield "missing"
        return
    if path.stat().st_size != entry["size_bytes"]:
        yield f"{path.stat().st_size} bytes, the index says {entry['size_bytes']}"
    elif fingerprint(path) != entry["sha256"]:
        yield "its checksum is not the one in the index"
    with h5py.File(path, "r", locking=False) as file:
        if file.attrs[schema.ATTR_CONFIG_HASH] != config_hash:
            yield "made with another configuration than the index says"
        if file.attrs[schema.ATTR_ROWS_HASH] != entry["rows_hash"]:
            yield "made of other manifest rows than the index says"
        counts = {"videos": len(file[schema.VIDEO_ROW]), "frames": len(file[schema.FRAME_TYPE])}
        counts["failures"] = len(file[schema.FAILURE_ROW])
        if file.attrs[schema.ATTR_VERSION] > 1:
            counts["damaged"] = int((file[schema.VIDEO_DAMAGE][:] > 0).sum())
        yield from (f"{n} {key}, the index says {entry[key]}" for key, n in counts.items() if n != entry[key])
        yield from _check_rows(file, entry)
        yield from _check_columns(file)
        yield from _check_jpegs(file, "frame", schema.FRAME_JPEG, schema.FRAME_OFFSET, decode, schema.ATTR_FRAME_SIZE)
        keyframes = (schema.KEYFRAME_JPEG, schema.KEYFRAME_OFFSET, decode, schema.ATTR_CANONICAL_SIZE)
        yield from _check_jpegs(file, "keyframe", *keyframes)
        yield from _check_motion(file)
        yield from _check_sources(file, sources)


def _check_rows(file: h5py.File, entry: dict[str, Any]) -> Iterator[str]:
    rows = {*file[schema.VIDEO_ROW][:].tolist(), *file[schema.FAILURE_ROW][:].tolist()}
    if rows != set(range(*entry["rows"])):
        yield f"its videos and failures are not the manifest rows {entry['rows'][0]} to {entry['rows'][1] - 1}"


def _check_columns(file: h5py.File) -> Iterator[str]:
    counts = file[schema.VIDEO_FRAME_COUNT][:]
    frames = int(counts.sum())
    if not np.array_equal(file[schema.VIDEO_FIRST_FRAME][:], np.cumsum(counts) - counts):
        yield "first frames do not follow from the frame counts"
    for name in (schema.FRAME_TYPE, schema.FRAME_PTS, schema.MOTION_GRID, schema.MOTION_VALID):
        if len(file[name]) != frames:
            yield f"{name} has {len(file[name])} frames, the videos have {frames}"
    indices, firsts = file[schema.KEYFRAME_INDEX][:], file[schema.VIDEO_FIRST_KEYFRAME][:]
    owner = np.searchsorted(firsts, np.arange(len(indices)), side="right") - 1
    absolute = file[schema.VIDEO_FIRST_FRAME][:][owner].astype(np.int64) + indices
    if not np.array_equal(absolute, np.flatnonzero(file[schema.FRAME_TYPE][:] == b"I")):
        yield "keyframes are not the I-frames"


def _check_jpegs(
    file: h5py.File, what: str, data_name: str, offset_name: str, decode: bool, size_name: str
) -> Iterator[str]:
    data, offsets = file[data_name], file[offset_name][:].astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
        yield f"{offset_name} does not divide {data_name}"
        return
    if not len(data):
        return  # extracted with --no-frames
    width, height = file.attrs[size_name]
    for start in range(0, len(offsets) - 1, _FRAMES):
        part = offsets[start : start + _FRAMES + 1]
        block: NDArray[np.uint8] = data[part[0] : part[-1]]
        for i, (begin, end) in enumerate(itertools.pairwise(part - part[0])):
            problem = _jpeg_problem(block[begin:end].tobytes(), int(width), int(height), decode)
            if problem:
                yield f"{what} {start + i}: {problem}"


def _jpeg_problem(jpeg: bytes, width: int, height: int, decode: bool) -> str | None:
    if not (jpeg.startswith(b"\xff\xd8") and jpeg.endswith(b"\xff\xd9")):
        return "no JPEG"
    try:
        found = simplejpeg.decode_jpeg_header(jpeg)[:2]
        if decode:
            simplejpeg.decode_jpeg(jpeg)
    except ValueError as error:
        return f"a damaged JPEG ({error})"
    return None if found == (height, width) else f"{found[1]}x{found[0]} pixels, not {width}x{height}"


def _check_motion(file: h5py.File) -> Iterator[str]:
    grid, valid, types = file[schema.MOTION_GRID], file[schema.MOTION_VALID], file[schema.FRAME_TYPE][:]
    width, height = (int(n) for n in file.attrs[schema.ATTR_CANONICAL_SIZE])
    cells = schema.grid_shape(width, height, int(file.attrs[schema.ATTR_CELL]))
    if grid.shape[1:] != (2, *cells) or valid.shape[1:] != cells:
        yield f"grids of shape {grid.shape[1:]} and {valid.shape[1:]} do not cover the picture"
        return
    for start in range(0, len(types), _FRAMES):
        values, mask = grid[start : start + _FRAMES], valid[start : start + _FRAMES]
        if mask.max(initial=0) > 1:
            yield f"{schema.MOTION_VALID}: other values than 0 and 1 in frames from {start} on"
        if (values * (mask[:, None] == 0)).any():
            yield f"{schema.MOTION_GRID}: motion in invalid cells in frames from {start} on"
        if mask[types[start : start + _FRAMES] == b"I"].any():
            yield f"{schema.MOTION_VALID}: I-frames with vectors in frames from {start} on"


def _check_sources(file: h5py.File, sources: dict[int, Path]) -> Iterator[str]:
    rows, prints = file[schema.VIDEO_ROW][:].tolist(), file[schema.VIDEO_FINGERPRINT][:]
    for row, expected in dict(zip(rows, prints, strict=True)).items():
        path = sources.get(row)
        if path is None or not path.exists():
            continue
        try:
            if fingerprint(path) != bytes(expected).decode():
                yield f"the source {path} has changed since it was extracted"
        except (VideoError, OSError) as error:
            yield f"the source {path} cannot be read ({error})"


def _check_folder(
    folder: Path, index: dict[str, Any], failures: list[FailedRow], damaged: list[DamagedRow]
) -> Iterator[str]:
    for key, value in index["totals"].items():
        if sum(s[key] for s in index["shards"]) != value:
            yield f"{schema.INDEX_NAME}: its total of {key} is not the sum over the shards"
    rows = [row for s in index["shards"] for row in range(*s["rows"])]
    if rows != list(range(len(rows))):
        yield f"{schema.INDEX_NAME}: its shards do not cover the manifest"
    yield from _check_table(folder / schema.FAILURES_NAME, failures)
    if index["version"] > 1:
        yield from _check_table(folder / schema.DAMAGED_NAME, damaged)
    known = {s["name"] for s in index["shards"]}
    foreign = sorted(p.name for p in folder.glob(schema.SHARD_GLOB) if p.name not in known)
    if foreign:
        yield f"shards that the index does not name: {', '.join(foreign[:5])}"


def _check_table(path: Path, expected: Sequence[tuple[object, ...]]) -> Iterator[str]:
    if not path.exists():
        yield f"{path.name}: missing"
        return
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        listed = list(csv.reader(stream))[1:]
    if listed != [list(map(str, row)) for row in expected]:
        yield f"{path.name}: not what the shards say"


def damaged_of(path: Path) -> list[DamagedRow]:
    """The videos of a shard whose sources are known to be damaged."""
    reader = ShardReader(path)
    try:
        return [(row, video_id, damage.text) for row, video_id, damage in reader.damaged()]
    finally:
        reader.close()
