"""Features files under construction: they grow video by video and survive SIGKILL at any point.

``OUT.h5.partial`` has the layout of a features file from the start. The rows of a video are written in place, together
with their checksum, so that the number of leading rows with a valid checksum is the number of finished videos. When
all are done, the file is renamed.

Shape legend: V videos, N clips of each, F features.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from types import TracebackType
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
    Features,
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


class PartialFeatures:
    """A features file under construction, to be used as a context manager inside ``writing``.

    Args:
        path: the features file. The finished videos of an interrupted run are kept.
        videos: V videos.
        provenance: recorded; with the provenance of an interrupted run it must agree in what determines the features.
        clips, width: N and F.
        fresh: discard the videos of an interrupted run.

    Attributes:
        done: number of finished videos.

    Raises:
        FeatureError: the interrupted run embedded something else.
        OSError: the file cannot be written.
    """

    def __init__(
        self, path: Path, videos: VideoTable, provenance: Provenance, clips: int, width: int, *, fresh: bool = False
    ) -> None:
        self._path, self._partial = path, path.with_name(path.name + PARTIAL_SUFFIX)
        self._videos, self._shape = len(videos), (clips, width)
        if fresh or not self._partial.exists():
            remove_leftovers(path.parent)
            with atomic_write(self._partial) as temporary:
                create_features_file(temporary, videos, provenance, clips, width)
        found = read_features(self._partial)
        check_identity(found, provenance)
        if found.mean_VF.shape[1] != width:
            raise FeatureError(
                f"{self._partial}: contains features of {found.mean_VF.shape[1]} values per clip, expected {width}; "
                "recompute them with --fresh, delete the file, or choose another file"
            )
        with h5py.File(self._partial, "r", locking=False) as file:
            self._offsets = [file[name].id.get_offset() for name in (CLIPS_DATASET, MEAN_DATASET, CHECKSUM_DATASET)]
            checksums = file[CHECKSUM_DATASET][:].tolist()
        self.done = _count_finished(found, checksums)
        self._file = self._partial.open("r+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, feature_NF: NDArray[np.float32]) -> None:
        """Write the features of the next video.

        Raises:
            ValueError: the shape is wrong.
            OSError: the file cannot be written.
        """
        if feature_NF.shape != self._shape:
            raise ValueError(f"feature_NF: shape {feature_NF.shape}, expected {self._shape}")
        clips = np.ascontiguousarray(feature_NF, "<f4").tobytes()
        mean = mean_over_clips(feature_NF).tobytes()
        checksum = zlib.crc32(clips + mean).to_bytes(4, "little")
        for offset, data in zip(self._offsets, (clips, mean, checksum), strict=True):
            self._file.seek(offset + self.done * len(data))
            self._file.write(data)
        self._file.flush()
        self.done += 1

    def finish(self) -> None:
        """Turn the partial file into the features file.

        Raises:
            ValueError: videos are missing.
        """
        if self.done != self._videos:
            raise ValueError(f"{self._partial}: features of {self.done} videos, expected {self._videos}")
        sync(self._partial)
        self._partial.replace(self._path)
        sync(self._path.parent)


def _count_finished(features: Features, checksums: Sequence[int]) -> int:
    """Return the number of leading videos whose rows match their checksum."""
    assert features.clips_VNF is not None
    rows = zip(features.clips_VNF, features.mean_VF, checksums, strict=True)
    matching = (zlib.crc32(clips.tobytes() + mean.tobytes()) == checksum for clips, mean, checksum in rows)
    return sum(1 for _ in takewhile(bool, matching))
