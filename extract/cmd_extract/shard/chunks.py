"""Rows of a chunked, Blosc-compressed HDF5 data set, unpacked from the mapped file.

A few frames of motion are a few kilobytes; HDF5 spends more on each call than unpacking them costs. Here HDF5 is asked
once where the chunks lie.
"""

from __future__ import annotations

import struct
from typing import Any

import blosc
import h5py
import numpy as np
from blosc import blosc_extension
from numpy.typing import NDArray

# Chunks are too small to share out; and threads of Blosc's own would not survive the fork of a data worker.
blosc.set_nthreads(1)

# Of a Blosc-1 chunk: four bytes of versions and flags, then its length unpacked, the block size, its length packed.
_BLOSC_HEADER = struct.Struct("<4xI4xI")


class MappedChunks:
    """Rows of one data set, which must be chunked along its first axis only.

    Args:
        dataset: read for its shape and the places of its chunks; not kept.
        file_bytes: the whole file, mapped.
    """

    def __init__(self, dataset: h5py.Dataset, file_bytes: memoryview) -> None:
        self._name = dataset.name
        self._bytes = file_bytes
        self._rows = dataset.chunks[0]
        # Where a chunk goes of which only some rows are wanted.
        self._spare = np.empty(dataset.chunks, dataset.dtype)
        self._spare_address = _address(self._spare)
        self._row_bytes = self._spare[0].nbytes
        # First byte of each chunk, and the byte after its last.
        self._places: dict[int, tuple[int, int]] = {}
        # Chunks that HDF5 has stored as they are, because they did not get smaller.
        self._bare: set[int] = set()
        dataset.id.chunk_iter(self._note)

    def _note(self, chunk: Any) -> None:
        number = chunk.chunk_offset[0] // self._rows
        self._places[number] = chunk.byte_offset, chunk.byte_offset + chunk.size
        if chunk.filter_mask:
            self._bare.add(number)

    def read_into(self, start: int, out: NDArray[Any]) -> None:
        """Fills ``out`` with rows from ``start`` on.

        Args:
            start: first row.
            out: (N, ...), of the data set's row shape; its dtype may be another of the same size.

        Raises:
            ValueError: ``out`` is not contiguous, or of another row size.
            OSError: what is stored cannot be unpacked.
        """
        rows, count = self._rows, len(out)
        # Blosc is given addresses: what is behind them must be as large as it believes.
        if not out.flags.c_contiguous or out.nbytes != count * self._row_bytes:
            raise ValueError(f"out: {out.shape} of {out.dtype} does not hold whole rows of {self._name}")
        address = _address(out)
        for number in range(start // rows, -(-(start + count) // rows)):
            first = number * rows - start
            if 0 <= first <= count - rows and number not in self._bare:
                self._unpack(number, address + first * self._row_bytes)
            else:
                self._unpack(number, self._spare_address)
                begin, end = max(first, 0), min(first + rows, count)
                out[begin:end] = self._spare[begin - first : end - first].view(out.dtype)

    def _unpack(self, number: int, address: int) -> None:
        """Writes a whole chunk to an address that has room for it; one that is bare to the spare chunk."""
        try:
            start, stop = self._places[number]
            packed = self._bytes[start:stop]
            if number in self._bare:
                self._spare.reshape(-1).view(np.uint8)[:] = np.frombuffer(packed, np.uint8)
                return
            # Blosc trusts its header: lengths that differ from HDF5's would make it read or write beyond the chunk.
            unpacked_size, packed_size = _BLOSC_HEADER.unpack_from(packed)
            if packed_size != len(packed) or unpacked_size != self._spare.nbytes:
                raise ValueError(f"its header says {packed_size} bytes for {unpacked_size}")
            blosc.decompress_ptr(packed, address)
        except (KeyError, ValueError, struct.error, blosc_extension.error) as error:
            raise OSError(f"{self._name}: chunk {number} cannot be unpacked ({error!r})") from error


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
