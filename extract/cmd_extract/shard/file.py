"""A shard file opened by one process: format checked, byte columns memory-mapped, datasets looked up once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cmd_extract import schema
from cmd_extract.errors import ShardError
from cmd_extract.schema import ShardHeader, VideoEntry
from cmd_extract.system.mapping import map_file

if TYPE_CHECKING:
    from cmd_extract.shard.chunks import MappedChunks


class OpenShard:
    """A shard opened by this process.

    Args:
        path: the HDF5 file.

    Attributes:
        h5: the open file.
        frame_counts: number of frames of each video.
        first_frame: first row of each video in the frame columns.
        first_keyframe: first row of each video in the keyframe columns, and the number of keyframes.

    Raises:
        ShardError: the file is not a shard, or of another format version.
        PermissionError: it may not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.h5 = h5py.File(path, "r", locking=False)
        except PermissionError:
            raise
        except OSError as error:
            raise ShardError(
                f"{path}: not a readable HDF5 file ({error}); run `cmd-extract run` again to replace it"
            ) from None
        self._check_format()
        file = self.h5
        self.frame_counts = [int(n) for n in file[schema.VIDEO_FRAME_COUNT][:]]
        self.first_frame = [int(n) for n in file[schema.VIDEO_FIRST_FRAME][:]]
        keyframe_count = len(file[schema.KEYFRAME_INDEX])
        self.first_keyframe = [*(int(n) for n in file[schema.VIDEO_FIRST_KEYFRAME][:]), keyframe_count]

    def _check_format(self) -> None:
        name, version = self.h5.attrs.get(schema.ATTR_FORMAT), self.h5.attrs.get(schema.ATTR_VERSION)
        if name != schema.FORMAT_NAME:
            raise ShardError(f"{self.path}: not a shard written by cmd-extract (format {name!r})")
        if version != schema.FORMAT_VERSION:
            raise ShardError(
                f"{self.path}: shard format version {version}, this release reads {schema.FORMAT_VERSION}; "
                "extract again, or use the release that wrote it"
            )

    @cached_property
    def header(self) -> ShardHeader:
        """Configuration and sizes, common to all videos."""
        attrs = self.h5.attrs
        width, height = (int(n) for n in attrs[schema.ATTR_CANONICAL_SIZE])
        frame_width, frame_height = (int(n) for n in attrs[schema.ATTR_FRAME_SIZE])
        return ShardHeader(
            config=json.loads(attrs[schema.ATTR_CONFIG]),
            config_hash=str(attrs[schema.ATTR_CONFIG_HASH]),
            canonical_width=width,
            canonical_height=height,
            frame_width=frame_width,
            frame_height=frame_height,
            cell_px=int(attrs[schema.ATTR_CELL]),
        )

    @cached_property
    def frame_bytes(self) -> memoryview:
        """All frame JPEGs, concatenated; memory-mapped."""
        return self._map(schema.FRAME_JPEG).data

    @cached_property
    def frame_offset(self) -> NDArray[np.uint64]:
        """(F + 1,) offset of each frame's JPEG; memory-mapped."""
        return self._map(schema.FRAME_OFFSET)

    @cached_property
    def keyframe_bytes(self) -> memoryview:
        """All keyframe JPEGs, concatenated; memory-mapped."""
        return self._map(schema.KEYFRAME_JPEG).data

    @cached_property
    def keyframe_offset(self) -> NDArray[np.uint64]:
        """(K + 1,) offset of each keyframe's JPEG; memory-mapped."""
        return self._map(schema.KEYFRAME_OFFSET)

    @cached_property
    def motion_grid(self) -> MappedChunks:
        """Motion grids of all frames."""
        return self._map_chunks(schema.MOTION_GRID)

    @cached_property
    def motion_valid(self) -> MappedChunks:
        """Validity masks of all frames."""
        return self._map_chunks(schema.MOTION_VALID)

    def _map_chunks(self, name: str) -> MappedChunks:
        # Blosc imports its own tests, which takes time that extraction does not need to spend.
        from cmd_extract.shard.chunks import MappedChunks

        return MappedChunks(self.h5[name], self._file_bytes)

    @cached_property
    def _file_bytes(self) -> memoryview:
        return map_file(self.path, np.uint8).data

    def _map(self, name: str) -> NDArray[Any]:
        dataset = self.h5[name]
        offset = dataset.id.get_offset()
        if offset is None:  # an empty dataset has no storage
            return np.empty(0, dataset.dtype)
        return map_file(self.path, dataset.dtype, offset, dataset.shape)

    def column(self, name: str, position: int) -> NDArray[Any]:
        """Return the rows of a frame column for the video at ``position``: (F, ...), F its frame count."""
        first = self.first_frame[position]
        values: NDArray[Any] = self.h5[name][first : first + self.frame_counts[position]]
        return values

    def entries(self, shard: int, columns: Mapping[str, Sequence[str]]) -> tuple[VideoEntry, ...]:
        """Return the videos in manifest order.

        Args:
            shard: index of this shard.
            columns: label, group and split columns, one value per manifest row; see ``schema.columns_of``.
        """
        file = self.h5
        ids, codecs, prints = (
            read_texts(file, name) for name in (schema.VIDEO_ID, schema.VIDEO_CODEC, schema.VIDEO_FINGERPRINT)
        )
        labels, groups = columns["label"], columns["group"]
        splits = {name: values for name, values in columns.items() if name not in ("label", "group")}
        rows, fps = file[schema.VIDEO_ROW][:].tolist(), file[schema.VIDEO_FPS][:].tolist()
        sizes = file[schema.VIDEO_SOURCE_SIZE][:].tolist()
        keyframes = file[schema.KEYFRAME_INDEX][:].tolist()
        return tuple(
            VideoEntry(
                row=rows[i],
                video_id=ids[i],
                label=labels[rows[i]],
                group=groups[rows[i]],
                splits={name: values[rows[i]] for name, values in splits.items()},
                frame_count=self.frame_counts[i],
                fps=fps[i],
                source_width=sizes[i][0],
                source_height=sizes[i][1],
                codec=codecs[i],
                fingerprint=prints[i],
                keyframe_indices=tuple(keyframes[self.first_keyframe[i] : self.first_keyframe[i + 1]]),
                shard=shard,
                position=i,
            )
            for i in range(len(rows))
        )


def read_texts(file: h5py.File, name: str) -> list[str]:
    """Return a text column; file names that are not UTF-8 keep their bytes."""
    return [bytes(value).decode("utf-8", "surrogateescape") for value in file[name][:]]
