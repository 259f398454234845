"""Tests of the read-only mapping of files."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmd_extract.system.mapping import map_file

NUMBERS = np.arange(3000, dtype="<u4")


class PrivateOnly(mmap.mmap):
    """A FUSE mount without shared mappings."""

    def __new__(cls, fileno: int, length: int, *arguments: Any, **options: Any) -> PrivateOnly:
        if options.get("access") is not None or not options.get("flags", mmap.MAP_SHARED) & mmap.MAP_PRIVATE:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return super().__new__(cls, fileno, length, *arguments, **options)


@pytest.mark.parametrize(
    ("offset", "shape"), [(0, (3000,)), (4, (10, 3)), (4096, (100,)), (5000, (2, 2, 2)), (8, (0, 7))]
)
def test_any_part_is_mapped_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(mmap, "mmap", PrivateOnly)
    path = tmp_path / "numbers"
    path.write_bytes(NUMBERS.tobytes())
    mapped = map_file(path, "<u4", offset, shape)
    first = offset // 4
    assert np.array_equal(mapped, NUMBERS[first : first + mapped.size].reshape(shape))
    assert type(mapped) is np.ndarray
    if mapped.size:
        with pytest.raises(ValueError, match="read-only"):
            mapped[0] = 1


def test_without_a_shape_the_rest_of_the_file_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(NUMBERS.tobytes())
    assert np.array_equal(map_file(path, "<u4", 8), NUMBERS[2:])
    path.write_bytes(b"")
    assert map_file(path, np.uint8).shape == (0,)


def test_a_file_that_is_too_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(NUMBERS.tobytes())
    with pytest.raises(ValueError, match=r"numbers: 12000 bytes, expected at least 12004"):
        map_file(path, "<u4", 4, (3000,))
