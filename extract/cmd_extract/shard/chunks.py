"""Fast reading of rows of a chunked, Blosc-compressed HDF5 dataset, decompressed from the memory-mapped file.

A few frames of motion are a few kilobytes: HDF5's overhead per call exceeds the cost of decompressing them. Therefore
the chunk locations are read from HDF5 once.
"""

from __future__ import annotations

import struct
from typing import Any

import blosc
import h5py
import numpy as np
from blosc import blosc_extension
from numpy.typing import NDArray

# Chunks are too small for several threads, and Blosc's thread pool would not survive the fork of a data worker.
blosc.set_nthreads(1)

# Blosc-1 chunk header: four bytes of versions and flags, uncompressed size, block size, compressed size.
_BLOSC_HEADER = struct.Struct("<4xI4xI")


class MappedChunks:
    """Rows of one dataset, which must be chunked along its first axis only.

    Args:
        dataset: the dataset; only its shape and chunk locations are read, and no reference is kept.
        file_bytes: the whole file, memory-mapped.
    """

    def __init__(self, dataset: h5py.Dataset, file_bytes: memoryview) -> None:
        self._name = dataset.name
        self._bytes = file_bytes
        self._rows = dataset.chunks[0]
        # Buffer for chunks of which only some rows are needed.
        self._buffer = np.empty(dataset.chunks, dataset.dtype)
        self._buffer_address = _address(self._buffer)
        self._row_bytes = self._buffer[0].nbytes
        # Start and end of each chunk in the file.
        self._ranges: dict[int, tuple[int, int]] = {}
        # Chunks stored uncompressed, because compression did not make them smaller.
        self._uncompressed: set[int] = set()
        dataset.id.chunk_iter(self._add_chunk)

    def _add_chunk(self, chunk: Any) -> None:
        number = chunk.chunk_offset[0] // self._rows
        self._ranges[number] = chunk.byte_offset, chunk.byte_offset + chunk.size
        if chunk.filter_mask:
            self._uncompressed.add(number)

    def read_into(self, start: int, out: NDArray[Any]) -> None:
        """Fill ``out`` with the rows from ``start`` on.

        Args:
            start: first row.
            out: (N, ...) contiguous array of the dataset's row shape; its dtype may differ if the item size is the
                same.

        Raises:
            ValueError: ``out`` is not contiguous or has another row size.
            OSError: a chunk cannot be decompressed.
        """
        rows, count = self._rows, len(out)
        # Blosc writes to a raw address; the memory there must be large enough.
        if not out.flags.c_contiguous or out.nbytes != count * self._row_bytes:
            raise ValueError(
                f"out: must be a contiguous array of whole rows of {self._name}, got {out.shape} {out.dtype}"
            )
        address = _address(out)
        for number in range(start // rows, -(-(start + count) // rows)):
            first = number * rows - start
            if 0 <= first <= count - rows and number not in self._uncompressed:
                self._decompress(number, address + first * self._row_bytes)
            else:
                self._decompress(number, self._buffer_address)
                begin, end = max(first, 0), min(first + rows, count)
                out[begin:end] = self._buffer[begin - first : end - first].view(out.dtype)

    def _decompress(self, number: int, address: int) -> None:
        """Write a whole chunk to an address with enough room; an uncompressed one to the buffer instead."""
        try:
            start, stop = self._ranges[number]
            chunk = self._bytes[start:stop]
            if number in self._uncompressed:
                self._buffer.reshape(-1).view(np.uint8)[:] = np.frombuffer(chunk, np.uint8)
                return
            # Blosc trusts its header: wrong sizes would make it read or write beyond the chunk.
            size, compressed_size = _BLOSC_HEADER.unpack_from(chunk)
            if compressed_size != len(chunk) or size != self._buffer.nbytes:
                raise ValueError(f"the header says {compressed_size} bytes compressed, {size} uncompressed")
            blosc.decompress_ptr(chunk, address)
        except (KeyError, ValueError, struct.error, blosc_extension.error) as error:
            raise OSError(f"{self._name}: chunk {number} cannot be decompressed ({error!r})") from error


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
