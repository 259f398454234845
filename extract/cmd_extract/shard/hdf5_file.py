"""A file for HDF5 to write to, which keeps the system's errors to itself until HDF5 is done.

HDF5 cannot cope with a full disk: what it has not yet written it tries again when the file is closed and when each of
the file's objects is let go of, and every one of these fails in its own words. So a write that fails is noted, and
raised once by who has asked for the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import h5py


class _NotingFile:
    """The methods of a binary file that h5py needs; the first error of writing is kept in ``failure``."""

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
        return self._stream.readinto(buffer)  # type: ignore[attr-defined, no-any-return] # every binary file has it

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def flush(self) -> None:
        """Nothing is held back: the stream has no buffer."""


@contextlib.contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file of an old, widely readable format; closed at the end.

    Raises:
        OSError: it could not be written, as the system says.
    """
    with path.open("w+b", buffering=0) as stream:
        noting = _NotingFile(stream)
        try:
            with h5py.File(noting, "w", libver=("earliest", "v110"), track_order=False, locking=False) as file:
                yield file
        except (OSError, RuntimeError):
            # Whatever HDF5 makes of a file that has lost some of its bytes.
            if noting.failure is None:
                raise
        if noting.failure is not None:
            raise noting.failure
