"""Fast reading of rows of a chunked, Blosc-compressed HDF5 dataset, without HDF5.

A few frames of motion are a few kilobytes: HDF5's overhead per call exceeds the cost of decompressing them, and walking
its index of chunks takes longer than reading a clip. Therefore a shard stores the location of each chunk in a column.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import blosc
import numpy as np
from blosc import blosc_extension
from numpy.typing import DTypeLike, NDArray

from cmd_extract.system.reading import read_ranges

# Chunks are too small for several threads, and Blosc's thread pool would not survive the fork of a data worker.
blosc.set_nthreads(1)

# Blosc-1 chunk header: four bytes of versions and flags, uncompressed size, block size, compressed size.
_BLOSC_HEADER = struct.Struct("<4xI4xI")


class ChunkedRows:
    """Rows of one dataset, which must be chunked along its first axis only.

    Args:
        name: name of the dataset, for messages.
        chunk_shape: shape of a chunk, its number of rows first.
        dtype: type of the items.
        locations: returns rows ``first`` to ``stop`` - 1 of the table of chunks, see ``locations.chunk_table``.
        read: reads a number of bytes of the file from a position on.
    """

    def __init__(
        self,
        name: str,
        chunk_shape: tuple[int, ...],
        dtype: DTypeLike,
        locations: Callable[[int, int], NDArray[np.uint64]],
        read: Callable[[int, int], bytes],
    ) -> None:
        self._name = name
        self._rows = chunk_shape[0]
        self._locations, self._read = locations, read
        self._shape, self._dtype = chunk_shape, np.dtype(dtype)
        self._row_bytes = int(np.prod(chunk_shape[1:])) * self._dtype.itemsize

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self._shape[1:]

    def read_into(self, start: int, out: NDArray[Any]) -> None:
        """Fill ``out`` with the rows from ``start`` on.

        Args:
            start: first row.
            out: (N, ...) contiguous array of the dataset's row shape; its dtype may differ if the item size is the
                same.

        Raises:
            ValueError: ``out`` is not contiguous or has another row size.
            OSError: a chunk cannot be read or decompressed.
        """
        rows, count = self._rows, len(out)
        # Blosc writes to a raw address; the memory there must be large enough.
        if not out.flags.c_contiguous or out.nbytes != count * self._row_bytes:
            raise ValueError(
                f"out: must be a contiguous array of whole rows of {self._name}, got {out.shape} {out.dtype}"
            )
        if not count:
            return
        # For chunks of which only some rows are needed.
        buffer = np.empty(self._shape, self._dtype)
        address, buffer_address = _address(out), _address(buffer)
        first_chunk, end_chunk = start // rows, -(-(start + count) // rows)
        table = self._locations(first_chunk, end_chunk).tolist()
        if len(table) != end_chunk - first_chunk:
            raise OSError(f"{self._name}: no chunk {first_chunk + len(table)}")
        chunks = read_ranges(self._read, [(position, position + size) for position, size, _ in table])
        for number, (_, _, mask), chunk in zip(range(first_chunk, end_chunk), table, chunks, strict=True):
            first = number * rows - start
            if 0 <= first <= count - rows and not mask:
                self._decompress(number, chunk, address + first * self._row_bytes)
                continue
            if mask:
                self._copy_uncompressed(number, chunk, buffer)
            else:
                self._decompress(number, chunk, buffer_address)
            begin, end = max(first, 0), min(first + rows, count)
            out[begin:end] = buffer[begin - first : end - first].view(out.dtype)

    def _copy_uncompressed(self, number: int, chunk: memoryview, buffer: NDArray[Any]) -> None:
        """Copy a chunk to the buffer that is stored as it is, because compression did not make it smaller."""
        if len(chunk) != buffer.nbytes:
            raise OSError(f"{self._name}: chunk {number} has {len(chunk)} bytes, expected {buffer.nbytes}")
        buffer.reshape(-1).view(np.uint8)[:] = np.frombuffer(chunk, np.uint8)

    def _decompress(self, number: int, chunk: memoryview, address: int) -> None:
        """Write a whole chunk to an address with enough room."""
        try:
            # Blosc trusts its header: wrong sizes would make it read or write beyond the chunk.
            size, compressed_size = _BLOSC_HEADER.unpack_from(chunk)
            if compressed_size != len(chunk) or size != self._rows * self._row_bytes:
                raise ValueError(f"the header says {compressed_size} bytes compressed, {size} uncompressed")
            blosc.decompress_ptr(chunk, address)
        except (ValueError, struct.error, blosc_extension.error) as error:
            raise OSError(f"{self._name}: chunk {number} cannot be decompressed ({error!r})") from error


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
