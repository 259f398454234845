from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from cmd_extract.system.reading import OpenFiles, read_ranges

KIB = 1024


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (names, not paths)


def test_no_more_descriptors_are_open_than_allowed(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(9)]
    for path in paths:
        path.write_bytes(path.name.encode() * 5)
    before, files = descriptors(), OpenFiles(limit=3)
    stamps = [files.stamp(path) for path in paths]
    for _ in range(2):
        for path, stamp in zip(paths, stamps, strict=True):
            assert files.read(path, stamp, 1, 3) == path.name.encode() * 3
    assert descriptors() == before + 3
    copy = pickle.loads(pickle.dumps(files))
    assert copy.read(paths[0], stamps[0], 0, 1) == b"0"
    files.close(paths[8])
    assert descriptors() == before + 3
    del files, copy
    assert descriptors() == before


def test_a_replaced_or_truncated_file_is_an_error(tmp_path: Path) -> None:
    path, files = tmp_path / "a", OpenFiles(limit=1)
    path.write_bytes(b"12345")
    stamp = files.stamp(path)
    with pytest.raises(OSError, match="bytes 3 to 6 of a file of 5 bytes"):
        files.read(path, stamp, 3, 3)
    os.truncate(path, 4)
    with pytest.raises(OSError, match="truncated; 1 of 2 bytes"):
        files.read(path, stamp, 3, 2)
    files.close(path)
    with pytest.raises(OSError, match="replaced while it was in use"):
        files.read(path, stamp, 0, 1)


def test_ranges_that_are_close_are_read_at_once() -> None:
    data = os.urandom(1000 * KIB)
    reads = []

    def read(start: int, count: int) -> bytes:
        reads.append((start, count))
        return data[start : start + count]

    ranges = [(900 * KIB, 901 * KIB), (20, 30), (25, 28), (100 * KIB, 200 * KIB), (150, 150), (20, 30)]
    assert [bytes(found) for found in read_ranges(read, ranges)] == [data[start:stop] for start, stop in ranges]
    assert reads == [(20, 200 * KIB - 20), (900 * KIB, KIB)]
    assert read_ranges(read, []) == []
