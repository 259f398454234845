"""Features files under construction: they are filled video by video and survive SIGKILL at any point.

``OUT.h5.partial`` has the layout of a features file from the start. The rows of a video are written in place, together
with their checksum, so that the rows with a valid checksum are the finished videos, whichever process wrote them.
Several processes write different rows of one file. When all are done, the file is renamed.

Shape legend: V videos, N clips of each, F features.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import h5py
import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from cmd_eval.data.table import VideoTable
from cmd_eval.features.store import (
    CHECKSUM_DATASET,
    CLIPS_DATASET,
    MEAN_DATASET,
    FeatureError,
    check_identity,
    create_features_file,
    mean_over_clips,
    read_features,
)
from cmd_eval.results.schema import Provenance
from cmd_extract.system.files import atomic_write, remove_leftovers, sync

PARTIAL_SUFFIX = ".partial"
"""Appended to the name of a features file that is not complete yet."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""Errors of file systems without locks, as on some clusters."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make sure that only one process writes a features file, where the file system supports locks.

    Raises:
        FeatureError: another process is writing the file.
        OSError: the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_path = path.with_name(f".{path.name}.lock")
    # A soft lock, an ordinary file, would stay behind after SIGKILL and stop every later run.
    lock = FileLock(lock_path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FeatureError(
            f"{path}: another process is writing this file (lock {lock_path}); wait until it has finished"
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        lock_path.unlink(missing_ok=True)
    try:
        yield
    finally:
        if lock.is_locked:
            # Safe while the lock is held: whoever acquires the lock of a deleted file tries again.
            lock_path.unlink(missing_ok=True)
            lock.release()


def create_partial(
    path: Path, videos: VideoTable, provenance: Provenance, clips: int, width: int, *, fresh: bool = False
) -> None:
    """Create the partial file of a features file, or check that of an interrupted run. Call it inside ``writing``.

    Args:
        path: the features file. The finished videos of an interrupted run are kept.
        videos: V videos.
        provenance: recorded; with the provenance of an interrupted run it must agree in what determines the features.
        clips, width: N and F.
        fresh: discard the videos of an interrupted run.

    Raises:
        FeatureError: the interrupted run embedded something else.
        OSError: the file cannot be written.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    if fresh or not partial.exists():
        remove_leftovers(path.parent)
        with atomic_write(partial) as temporary:
            create_features_file(temporary, videos, provenance, clips, width)
    found = read_features(partial)
    check_identity(found, provenance)
    if found.mean_VF.shape[1] != width:
        raise FeatureError(
            f"{partial}: contains features of {found.mean_VF.shape[1]} values per clip, expected {width}; "
            "recompute them with --fresh, delete the file, or choose another file"
        )


class PartialFeatures:
    """The partial file of a features file, to be used as a context manager; several processes may open it.

    Args:
        path: the features file, whose partial file exists.

    Attributes:
        missing: ranges of the videos that were not finished when the file was opened, ascending.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._partial = path, path.with_name(path.name + PARTIAL_SUFFIX)
        found = read_features(self._partial)
        assert found.clips_VNF is not None
        self._shape = found.clips_VNF.shape[1:]
        with h5py.File(self._partial, "r", locking=False) as file:
            self._offsets = [file[name].id.get_offset() for name in (CLIPS_DATASET, MEAN_DATASET, CHECKSUM_DATASET)]
        self.missing = self._unfinished()
        self._file = self._partial.open("r+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, row: int, feature_NF: NDArray[np.float32]) -> None:
        """Write the features of a video.

        Raises:
            ValueError: the shape is wrong.
            OSError: the file cannot be written.
        """
        if feature_NF.shape != self._shape:
            raise ValueError(f"feature_NF: shape {feature_NF.shape}, expected {self._shape}")
        clips = np.ascontiguousarray(feature_NF, "<f4").tobytes()
        mean = mean_over_clips(feature_NF).tobytes()
        checksum = _checksum(clips, mean).to_bytes(4, "little")
        for offset, data in zip(self._offsets, (clips, mean, checksum), strict=True):
            self._file.seek(offset + row * len(data))
            self._file.write(data)
        self._file.flush()

    def finish(self) -> None:
        """Check all rows and turn the partial file into the features file.

        Raises:
            FeatureError: videos are missing.
        """
        missing = sum(map(len, self._unfinished()))
        if missing:
            raise FeatureError(
                f"{self._partial}: the features of {missing} videos are missing or damaged; run the same command again "
                "to compute them"
            )
        sync(self._partial)
        self._partial.replace(self._path)
        sync(self._path.parent)

    def _unfinished(self) -> list[range]:
        """Return the ranges of rows that do not match their checksum."""
        features = read_features(self._partial)
        with h5py.File(self._partial, "r", locking=False) as file:
            checksums = file[CHECKSUM_DATASET][:].tolist()
        assert features.clips_VNF is not None
        ranges: list[range] = []
        for row, checksum in enumerate(checksums):
            # The rest of an unwritten row need not be read.
            if checksum and checksum == _checksum(features.clips_VNF[row].tobytes(), features.mean_VF[row].tobytes()):
                continue
            if ranges and ranges[-1].stop == row:
                ranges[-1] = range(ranges[-1].start, row + 1)
            else:
                ranges.append(range(row, row + 1))
        return ranges


def _checksum(clips: bytes, mean: bytes) -> int:
    """Return the checksum of a row; never 0, which is that of a row without features."""
    return zlib.crc32(mean, zlib.crc32(clips)) or 1


def share_of(ranges: Sequence[range], rank: int, world_size: int) -> list[range]:
    """Return the part of some ranges that one of several processes computes; parts differ by one item at most."""
    total = sum(map(len, ranges))
    low, high = total * rank // world_size, total * (rank + 1) // world_size
    share, before = [], 0
    for each in ranges:
        part = each[max(0, low - before) : max(0, high - before)]
        share += [part] if part else []
        before += len(each)
    return share
