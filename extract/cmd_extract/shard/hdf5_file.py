"""Creation of HDF5 files on disks that may be full: the first write error is kept and raised once at the end.

HDF5 does not handle a full disk well: it repeats failed writes when the file is closed and when each of its objects is
released, and each of these raises an error of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import h5py


class _RecordingFile:
    """Binary file with the methods that h5py needs; keeps the first write error in ``failure``."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, data: memoryview) -> int:
        if self.failure is None:
            try:
                return self._stream.write(data)
            except OSError as error:
                self.failure = error
        return len(data)

    def truncate(self, size: int) -> int:
        if self.failure is None:
            try:
                return self._stream.truncate(size)
            except OSError as error:
                self.failure = error
        return size

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size)

    def readinto(self, buffer: memoryview) -> int:
        return self._stream.readinto(buffer)  # type: ignore[attr-defined, no-any-return] # raw binary files have it

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def flush(self) -> None:
        """Do nothing: the stream is unbuffered."""


@contextlib.contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """Create an HDF5 file, in a format that old versions of HDF5 can read, and close it at the end of the block.

    Raises:
        OSError: the first write error.
    """
    with path.open("w+b", buffering=0) as stream:
        recording = _RecordingFile(stream)
        try:
            with h5py.File(recording, "w", libver=("earliest", "v110"), track_order=False, locking=False) as file:
                yield file
        except (OSError, RuntimeError):
            # A consequence of the failed write.
            if recording.failure is None:
                raise
        if recording.failure is not None:
            raise recording.failure
