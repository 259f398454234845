"""One shard's HDF5 file as one process has it open: checked, its byte columns mapped, its data sets looked up once."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cmd_extract import schema
from cmd_extract.errors import ShardError
from cmd_extract.schema import ShardHeader, VideoEntry

if TYPE_CHECKING:
    from cmd_extract.shard.chunks import MappedChunks


class OpenShard:
    """A shard opened by this process, with what every access needs at hand.

    Args:
        path: the HDF5 file.

    Raises:
        ShardError: it is no shard, or of another format version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.h5 = h5py.File(path, "r", locking=False)
        except OSError as error:
            raise ShardError(
                f"{path}: not a readable HDF5 file ({error}); run cmd-extract again to replace it"
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
            raise ShardError(f"{self.path}: not a shard of this project (format {name!r})")
        if version not in schema.READABLE_VERSIONS:
            readable = ", ".join(map(str, schema.READABLE_VERSIONS))
            raise ShardError(
                f"{self.path}: shard format version {version}, this release reads {readable}; "
                "extract again or use the release that wrote it"
            )

    @cached_property
    def header(self) -> ShardHeader:
        """Configuration and sizes shared by all videos."""
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
        """All frame JPEGs end to end, mapped."""
        return self._map(schema.FRAME_JPEG).data

    @cached_property
    def frame_offset(self) -> NDArray[np.uint64]:
        """(F + 1,) where each frame's JPEG begins, mapped."""
        return self._map(schema.FRAME_OFFSET)

    @cached_property
    def keyframe_bytes(self) -> memoryview:
        """All keyframe JPEGs end to end, mapped."""
        return self._map(schema.KEYFRAME_JPEG).data

    @cached_property
    def keyframe_offset(self) -> NDArray[np.uint64]:
        """(K + 1,) where each keyframe's JPEG begins, mapped."""
        return self._map(schema.KEYFRAME_OFFSET)

    @cached_property
    def motion_grid(self) -> MappedChunks:
        """Grids of all frames."""
        return self._map_chunks(schema.MOTION_GRID)

    @cached_property
    def motion_valid(self) -> MappedChunks:
        """Validity masks of all frames."""
        return self._map_chunks(schema.MOTION_VALID)

    def _map_chunks(self, name: str) -> MappedChunks:
        from cmd_extract.shard.chunks import (
            MappedChunks,  # Blosc loads its own tests, which extraction need not wait for
        )

        return MappedChunks(self.h5[name], self._whole)

    @cached_property
    def _whole(self) -> memoryview:
        return np.asarray(np.memmap(self.path, np.uint8, "r")).data

    def _map(self, name: str) -> NDArray[Any]:
        dataset = self.h5[name]
        offset = dataset.id.get_offset()
        if offset is None:  # nothing was ever written: an empty column
            return np.empty(0, dataset.dtype)
        # As a plain array: a memmap's slices are much slower to make.
        return np.asarray(np.memmap(self.path, dataset.dtype, "r", offset=offset, shape=dataset.shape))

    def column(self, name: str, position: int) -> NDArray[Any]:
        """The rows of a frame column that belong to the video at ``position``: (F, ...), F its frames."""
        first = self.first_frame[position]
        values: NDArray[Any] = self.h5[name][first : first + self.frame_counts[position]]
        return values

    def entries(self, shard: int) -> tuple[VideoEntry, ...]:
        """The videos, in manifest order; ``shard`` is their shard's number."""
        file = self.h5
        ids, labels, groups, codecs, prints = (
            read_texts(file, name)
            for name in (
                schema.VIDEO_ID,
                schema.VIDEO_LABEL,
                schema.VIDEO_GROUP,
                schema.VIDEO_CODEC,
                schema.VIDEO_FINGERPRINT,
            )
        )
        splits = {column: read_texts(file, f"{schema.VIDEO_SPLIT}/{column}") for column in file[schema.VIDEO_SPLIT]}
        rows, fps = file[schema.VIDEO_ROW][:].tolist(), file[schema.VIDEO_FPS][:].tolist()
        sizes = file[schema.VIDEO_SOURCE_SIZE][:].tolist()
        keyframes = file[schema.KEYFRAME_INDEX][:].tolist()
        return tuple(
            VideoEntry(
                row=rows[i],
                video_id=ids[i],
                label=labels[i],
                group=groups[i],
                splits={column: values[i] for column, values in splits.items()},
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
    """A column of text; bytes of file names that are not UTF-8 are kept."""
    return [bytes(value).decode("utf-8", "surrogateescape") for value in file[name][:]]
