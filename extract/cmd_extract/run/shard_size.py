"""Expected size of shards, from the size of their source files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from cmd_extract.sources.location import Root, locate

# Bytes of a shard, with default settings, per byte of its sources. Measured on real clips: 3 for Kinetics clips of
# 340 x 256 pixels, 0.4 for 1280 x 720; medians of most small collections are 1.7 to 8 (PLANNING.md, "Bookkeeping").
BYTES_PER_SOURCE_BYTE = 4
_PATHS_PER_CALL = 512
_THREADS = 8  # on a network file system, each look-up waits for the server

Estimate = Callable[[Sequence[str]], Iterator[int]]
"""Yields the expected number of bytes in a shard for each of some paths in a manifest."""


def estimate_below(root: Root) -> Estimate:
    """Return how to estimate the bytes of videos in shards; 0 for those whose size is not known without reading.

    These are remote files, members of tar files and missing files.

    Args:
        root: folder, or URL prefix, to which the paths are relative.
    """
    return partial(_expected_bytes, root)


def _expected_bytes(root: Root, paths: Sequence[str]) -> Iterator[int]:
    parts = [paths[i : i + _PATHS_PER_CALL] for i in range(0, len(paths), _PATHS_PER_CALL)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for sizes in pool.map(partial(_source_bytes, root), parts):
            for size in sizes:
                yield size * BYTES_PER_SOURCE_BYTE


def _source_bytes(root: Root, paths: Sequence[str]) -> list[int]:
    return [_file_bytes(root, path) for path in paths]


def _file_bytes(root: Root, path: str) -> int:
    if isinstance(root, Path) and ":" not in path:  # as in URLs and before members of tar files
        name = os.path.join(root, path)  # noqa: PTH118 (creating a Path takes longer than stat)
    elif isinstance(source := locate(path, root), Path):
        name = str(source)
    else:
        return 0
    try:
        return os.stat(name).st_size  # noqa: PTH116 (as above)
    except (OSError, ValueError):
        return 0
