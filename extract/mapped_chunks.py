"""Rows of a chunked, Blosc-compressed HDF5 data set, unpacked from the mapped file.

A few frames of motion are a few kilobytes; HDF5 spends more on each call than unpacking them costs. Here HDF5 is asked
once where the chunks lie.
"""

from __future__ import annotations

import struct
from typing import Any

import h5py
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

# Chunks are too small to share out; and threads of Blosc's own would not survive the fork of a data worker.
blosc.use_threads = False

# Of a Blosc-1 chunk: four bytes of versions and flags, then its length unpacked, the block size, its length packed.
_BLOSC_HEADER = struct.Struct("<4xIII")


class MappedChunks:
    """Rows of one data set, which must be chunked along its first axis only.

    Args:
        dataset: read for its shape and the places of its chunks; not kept.
        file_bytes: the whole file, mapped.
    """

    def __init__(self, dataset: h5py.Dataset, file_bytes: NDArray[np.uint8]) -> None:
        self._name = dataset.name
        self._bytes = file_bytes
        self._rows = dataset.chunks[0]
        self._dtype = dataset.dtype
        self._unpacked = np.empty(dataset.chunks, dataset.dtype)
        # Byte offset, length, and whether the filter was left out, of each chunk.
        self._places: dict[int, tuple[int, int, bool]] = {}
        dataset.id.chunk_iter(self._note)

    def _note(self, chunk: Any) -> None:
        self._places[chunk.chunk_offset[0] // self._rows] = (chunk.byte_offset, chunk.size, bool(chunk.filter_mask))

    def read_into(self, start: int, out: NDArray[Any]) -> None:
        """Fills ``out`` with rows from ``start`` on.

        Args:
            start: first row.
            out: (N, ...) contiguous, of the data set's row shape; its dtype may be another of the same size.

        Raises:
            OSError: what is stored cannot be unpacked.
        """
        rows, stop = self._rows, start + len(out)
        for number in range(start // rows, -(-stop // rows)):
            begin, end = max(number * rows, start), min((number + 1) * rows, stop)
            part = out[begin - start : end - start]
            if end - begin == rows:
                self._unpack(number, part)
            else:
                self._unpack(number, self._unpacked)
                part[...] = self._unpacked[begin - number * rows : end - number * rows].view(part.dtype)

    def _unpack(self, number: int, into: NDArray[Any]) -> None:
        try:
            offset, size, bare = self._places[number]
            packed = self._bytes[offset : offset + size]
            if bare:
                into.reshape(-1).view(np.uint8)[...] = packed
                return
            # Blosc trusts its header: lengths that differ from HDF5's would make it read beyond the chunk.
            unpacked_size, _, packed_size = _BLOSC_HEADER.unpack_from(packed.data)
            if packed_size != size or unpacked_size != into.nbytes:
                raise ValueError(f"its header says {packed_size} bytes for {unpacked_size}")
            blosc.decompress(packed, into)
        except (KeyError, ValueError, RuntimeError, struct.error) as error:
            raise OSError(f"{self._name}: chunk {number} cannot be unpacked ({error!r})") from error
