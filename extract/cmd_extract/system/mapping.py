"""Read-only mapping of files into memory, on any file system."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def map_file(path: Path, dtype: DTypeLike, offset: int = 0, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
    """Map a part of a file into memory, read-only.

    The mapping is private: some file systems (FUSE) refuse shared ones, and pages that are only read are the same.

    Args:
        path: the file.
        dtype: type of the items.
        offset: position of the first item in bytes.
        shape: shape of the array; None maps all items up to the end of the file in one dimension.

    Returns:
        A plain array, because slicing ``numpy.memmap`` is much slower.

    Raises:
        OSError: the file cannot be mapped.
        ValueError: it is too short.
    """
    kind = np.dtype(dtype)
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        count = (size - offset) // kind.itemsize if shape is None else int(np.prod(shape))
        if offset + count * kind.itemsize > size:
            raise ValueError(f"{path}: {size} bytes, expected at least {offset + count * kind.itemsize}")
        if count <= 0:  # an empty range cannot be mapped
            return np.empty((0,) if shape is None else shape, kind)
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        length = offset + count * kind.itemsize - start
        mapped = mmap.mmap(stream.fileno(), length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ, offset=start)
    values = np.frombuffer(mapped, kind, count, offset - start)
    return values if shape is None else values.reshape(shape)
