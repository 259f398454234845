"""Writing of a shard: videos are collected in files, then copied into datasets of the final size.

The files are needed because HDF5 cannot extend contiguous datasets, and readers can memory-map only contiguous ones.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from cmd_extract import schema
from cmd_extract.config import ExtractConfig
from cmd_extract.decode.video import ExtractedVideo, cut_into_segments
from cmd_extract.errors import VideoError
from cmd_extract.schema import VideoRecord
from cmd_extract.shard.hdf5_file import new_hdf5
from cmd_extract.shard.locations import chunk_table
from cmd_extract.shard.spool import Failure, Sample, Spool
from cmd_extract.system.files import atomic_write

# Small enough for the CPU cache between reading and writing.
_COPY_BYTES = 1 << 20
_COPY_FRAMES = 128


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """A shard that has been written, and its totals.

    Attributes:
        name: file name.
        sha256: checksum of the file.
        size_bytes: its size.
        videos, frames, failures: counts; segments count as videos.
        damaged: number of videos with known damage of the source.
    """

    name: str
    sha256: str
    size_bytes: int
    videos: int
    frames: int
    failures: int
    damaged: int


class ShardWriter:
    """Collects the videos and failures of some manifest rows and writes them as one shard.

    Args:
        target: path of the shard.
        workdir: existing folder on the same file system as the files of the videos, which are moved there.
        config: the extraction configuration.
        described: ``config`` as stored, see ``ExtractConfig.describe``.
        software: versions, by name, of the programs used.
        rows_hash: hash of the manifest rows, see ``schema.hash_records``.
    """

    def __init__(
        self,
        target: Path,
        *,
        workdir: Path,
        config: ExtractConfig,
        described: dict[str, Any],
        software: dict[str, str],
        rows_hash: str,
    ) -> None:
        self._target = target
        self._config = config
        self._described = described
        self._software = software
        self._rows_hash = rows_hash
        self._spool = Spool(workdir)

    def add_video(self, record: VideoRecord, video: ExtractedVideo) -> None:
        """Add a video; its files are moved."""
        spool = self._spool
        spool.append("frame", video.frame_jpeg)
        spool.append("keyframe", video.keyframe_jpeg)
        spool.append("grid", video.grid)
        spool.append("valid", video.valid)
        spool.videos.append(video)
        seconds = self._config.segment_seconds
        for number, (start, stop) in enumerate(cut_into_segments(video, seconds)):
            name = record.video_id if seconds is None else f"{record.video_id}#{number:04d}"
            spool.samples.append(Sample(record=record, video=video, video_id=name, start=start, stop=stop))

    def add_failure(self, record: VideoRecord, error: VideoError) -> None:
        """Add a manifest row whose video could not be extracted."""
        self._spool.failures.append(Failure(record=record, stage=error.stage, reason=error.reason))

    def finish(self) -> WrittenShard:
        """Write the shard atomically.

        If the working folder is on another file system than the target, HDF5's many small writes go to the working
        folder, and the complete file is copied to the target.
        """
        workdir = self._spool.folder
        if workdir.stat().st_dev == self._target.parent.stat().st_dev:
            with atomic_write(self._target) as temporary:
                self._write(temporary)
        else:
            local = workdir / self._target.name
            self._write(local)
            with atomic_write(self._target) as temporary:
                shutil.copyfile(local, temporary)
        with self._target.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return WrittenShard(
            name=self._target.name,
            sha256=digest,
            size_bytes=self._target.stat().st_size,
            videos=len(self._spool.samples),
            frames=sum(v.frame_count for v in self._spool.videos),
            failures=len(self._spool.failures),
            damaged=sum(bool(s.video.damage) for s in self._spool.samples),
        )

    def _write(self, path: Path) -> None:
        with new_hdf5(path) as file:
            self._write_attributes(file)
            self._write_videos(file)
            self._write_frames(file)
            self._write_motion(file)
            self._write_failures(file)

    def _write_attributes(self, file: h5py.File) -> None:
        config = self._config
        file.attrs[schema.ATTR_FORMAT] = schema.FORMAT_NAME
        file.attrs[schema.ATTR_VERSION] = schema.FORMAT_VERSION
        file.attrs[schema.ATTR_CONFIG] = json.dumps(self._described, sort_keys=True)
        file.attrs[schema.ATTR_CONFIG_HASH] = schema.hash_json(self._described)
        file.attrs[schema.ATTR_ROWS_HASH] = self._rows_hash
        file.attrs[schema.ATTR_SOFTWARE] = json.dumps(self._software, sort_keys=True)
        file.attrs[schema.ATTR_VIDEO_COUNT] = len(self._spool.samples)
        file.attrs[schema.ATTR_CANONICAL_SIZE] = np.array([config.width, config.height], np.int32)
        file.attrs[schema.ATTR_FRAME_SIZE] = np.array(config.frame_size, np.int32)
        file.attrs[schema.ATTR_CELL] = config.cell_px

    def _write_videos(self, file: h5py.File) -> None:
        samples = self._spool.samples
        records, sources = [s.record for s in samples], [s.video.source for s in samples]
        counts = np.array([s.frame_count for s in samples], np.int64)
        keyframes = np.array([len(s.keyframe_indices) for s in samples], np.int64)
        sizes = np.array([(f.width, f.height) for f in sources], np.int32).reshape(len(samples), 2)
        _put(file, schema.VIDEO_ROW, np.array([r.row for r in records], np.int64))
        _put_text(file, schema.VIDEO_ID, [s.video_id for s in samples])
        _put(file, schema.VIDEO_FRAME_COUNT, counts)
        _put(file, schema.VIDEO_FPS, np.array([s.fps for s in samples], np.float64))
        _put(file, schema.VIDEO_SOURCE_SIZE, sizes)
        _put_text(file, schema.VIDEO_CODEC, [f.codec for f in sources])
        _put_text(file, schema.VIDEO_FINGERPRINT, [f.fingerprint for f in sources])
        _put(file, schema.VIDEO_SOURCE_BYTES, np.array([f.file_bytes for f in sources], np.int64))
        _put(file, schema.VIDEO_OWN_VECTORS, np.array([s.video.own_vectors for s in samples], np.uint8))
        _put(file, schema.VIDEO_DAMAGE, np.array([s.video.damage for s in samples], np.uint8))
        notes = [s.video.note for s in samples]
        if any(notes):
            _put_text(file, schema.VIDEO_NOTE, notes)
        _put(file, schema.VIDEO_FIRST_FRAME, _starts(counts)[:-1])
        _put(file, schema.VIDEO_FIRST_KEYFRAME, _starts(keyframes)[:-1])

    def _write_frames(self, file: h5py.File) -> None:
        videos = self._spool.videos
        self._copy_bytes(file, schema.FRAME_JPEG, "frame")
        _put(file, schema.FRAME_OFFSET, _starts(_join([v.frame_sizes for v in videos], np.int64)))
        _put(file, schema.FRAME_TYPE, _join([v.frame_types for v in videos], "S1"))
        _put(file, schema.FRAME_PTS, _join([s.pts_seconds for s in self._spool.samples], np.float64))
        self._copy_bytes(file, schema.KEYFRAME_JPEG, "keyframe")
        _put(file, schema.KEYFRAME_OFFSET, _starts(_join([v.keyframe_sizes for v in videos], np.int64)))
        _put(file, schema.KEYFRAME_INDEX, _join([s.keyframe_indices for s in self._spool.samples], np.int64))

    def _copy_bytes(self, file: h5py.File, name: str, kind: str) -> None:
        dataset = file.create_dataset(name, shape=(self._spool.byte_count(kind),), dtype=np.uint8, track_times=False)
        start = 0
        for block in self._spool.blocks(kind, _COPY_BYTES):
            dataset[start : start + len(block)] = np.frombuffer(block, np.uint8)
            start += len(block)

    def _write_motion(self, file: h5py.File) -> None:
        rows, columns = schema.grid_shape(self._config.width, self._config.height, self._config.cell_px)
        frames = sum(v.frame_count for v in self._spool.videos)
        self._copy_grid(
            file, schema.MOTION_GRID, "grid", (frames, 2, rows, columns), np.int16, schema.MOTION_CHUNK_FRAMES
        )
        self._copy_grid(
            file, schema.MOTION_VALID, "valid", (frames, rows, columns), np.uint8, schema.VALID_CHUNK_FRAMES
        )
        _put(file, schema.MOTION_GRID_CHUNK, chunk_table(file[schema.MOTION_GRID]))
        _put(file, schema.MOTION_VALID_CHUNK, chunk_table(file[schema.MOTION_VALID]))

    def _copy_grid(
        self, file: h5py.File, name: str, kind: str, shape: tuple[int, ...], dtype: type, chunk_frames: int
    ) -> None:
        dataset = file.create_dataset(
            name,
            shape=shape,
            dtype=dtype,
            chunks=(chunk_frames, *shape[1:]),
            # A dataset of fixed size must not be smaller than a chunk.
            maxshape=(None, *shape[1:]),
            track_times=False,
            # zstd would be 40 % smaller and as fast to write, but takes three times as long to decompress.
            **hdf5plugin.Blosc(cname="lz4hc", clevel=1, shuffle=hdf5plugin.Blosc.SHUFFLE),
        )
        frame_bytes = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        start = 0
        for block in self._spool.blocks(kind, _COPY_FRAMES * frame_bytes):
            part: NDArray[Any] = np.frombuffer(block, dtype).reshape(-1, *shape[1:])
            dataset[start : start + len(part)] = part
            start += len(part)
        if start != shape[0]:
            raise ValueError(f"{name}: the spooled files contain {start} frames, the videos have {shape[0]}")
        # Flush now instead of when the last reference is dropped, which may be late (Dask's profiler keeps some): the
        # order in which chunks are written affects the bytes of the file.
        dataset.flush()

    def _write_failures(self, file: h5py.File) -> None:
        failures = self._spool.failures
        _put(file, schema.FAILURE_ROW, np.array([f.record.row for f in failures], np.int64))
        _put_text(file, schema.FAILURE_ID, [f.record.video_id for f in failures])
        _put_text(file, schema.FAILURE_PATH, [f.record.path for f in failures])
        _put_text(file, schema.FAILURE_STAGE, [f.stage for f in failures])
        _put_text(file, schema.FAILURE_REASON, [f.reason for f in failures])


def _put(file: h5py.File, name: str, values: NDArray[Any]) -> None:
    file.create_dataset(name, data=values, track_times=False)


def _put_text(file: h5py.File, name: str, texts: Sequence[str]) -> None:
    """Write a column of fixed-length UTF-8; file names that are not UTF-8 keep their bytes."""
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    length = max((len(e) for e in encoded), default=0) or 1
    _put(file, name, np.array(encoded, h5py.string_dtype("utf-8", length)))


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the N + 1 offsets of N consecutive items."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)


def _join(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype)
