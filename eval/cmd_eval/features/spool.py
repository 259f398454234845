"""What an embedding has done so far: a file that grows video by video and survives being killed at any byte.

A first line of JSON says what is being embedded; then, for each video in order, a checksum and its features.

Shape legend: N clips of a video, F features.
"""

from __future__ import annotations

import errno
import fcntl
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from cmd_eval.features.store import FeatureError

_CHECKSUM_BYTES = 4
_VIDEOS_AT_ONCE = 256
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What file systems without locks say, such as some of clusters."""


def _lock(stream: BinaryIO) -> None:
    """Locks a file against other processes, where the file system can.

    Raises:
        BlockingIOError: another process has locked it.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


class EmbeddingSpool:
    """Features that are still being made; use it in a ``with`` block.

    Args:
        path: the file; what an earlier run of the same embedding has left in it is kept.
        identity: what is being embedded.
        clips, width: N and F.
        fresh: forget what is in the file, of whatever embedding.

    Raises:
        FeatureError: the file is of another embedding, or another process is writing it.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], clips: int, width: int, *, fresh: bool = False) -> None:
        self.path = path
        self._shape = (clips, width)
        self._record_bytes = _CHECKSUM_BYTES + 4 * clips * width
        self._header = json.dumps({**identity, "width": width}, sort_keys=True).encode() + b"\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream: BinaryIO = path.open("a+b")
        try:
            _lock(self._stream)
            if fresh:
                self._stream.truncate(0)
            self.done = self._recover()
        except BlockingIOError:
            self._stream.close()
            raise FeatureError(f"{path}: another process is embedding to this file; wait until it has ended") from None
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def append(self, feature_NF: NDArray[np.float32]) -> None:
        """Adds the next video's features.

        Raises:
            ValueError: they have another shape.
        """
        if feature_NF.shape != self._shape:
            raise ValueError(f"feature_NF: shape {feature_NF.shape}, need {self._shape}")
        data = np.ascontiguousarray(feature_NF, np.float32).tobytes()
        self._stream.write(zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little") + data)
        self._stream.flush()
        self.done += 1

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """The features of all videos so far, some hundred videos at a time, (any, N, F)."""
        self._stream.seek(len(self._header))
        left = self.done
        while left:
            count = min(left, _VIDEOS_AT_ONCE)
            data = np.frombuffer(self._stream.read(count * self._record_bytes), np.uint8).reshape(count, -1)
            floats = np.ascontiguousarray(data[:, _CHECKSUM_BYTES:]).view(np.float32)
            yield floats.reshape(count, *self._shape)
            left -= count

    def remove(self) -> None:
        """Deletes the file, once its features are safe elsewhere."""
        self.path.unlink(missing_ok=True)

    def _recover(self) -> int:
        """Number of whole videos in the file; what follows them, which a killed run has left, is cut off."""
        self._stream.seek(0)
        found = self._stream.readline()
        if not self._header.startswith(found):  # the beginning of a header is what a very early kill leaves
            raise FeatureError(
                f"{self.path}: holds unfinished features of other weights, other shards or another number of clips; "
                "remove it or give --fresh to make them anew, or give another file"
            )
        if found != self._header:
            self._stream.truncate(0)
            self._stream.write(self._header)
            self._stream.flush()
            return 0
        videos = 0
        while True:
            record = self._stream.read(self._record_bytes)
            data = record[_CHECKSUM_BYTES:]
            if len(record) < self._record_bytes or zlib.crc32(data) != int.from_bytes(
                record[:_CHECKSUM_BYTES], "little"
            ):
                break
            videos += 1
        self._stream.truncate(len(self._header) + videos * self._record_bytes)
        self._stream.seek(0, 2)
        return videos
