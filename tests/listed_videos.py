"""Videos that tests list themselves, as the sequence that shards have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmd_extract.schema import VideoEntry
from cmd_extract.shard.videos import Names, Videos


class ListedVideos(Videos):
    """The given videos."""

    def __init__(self, entries: Sequence[VideoEntry]) -> None:
        self.entries = tuple(entries)
        self.split_columns = tuple(dict.fromkeys(name for entry in entries for name in entry.splits))

    def __len__(self) -> int:
        return len(self.entries)

    def entry(self, number: int) -> VideoEntry:
        return self.entries[number]

    def numbers(self, column: str) -> NDArray[Any]:
        return np.array([getattr(entry, column) for entry in self.entries])

    def texts(self, column: str) -> Iterator[str]:
        return iter([getattr(entry, column) for entry in self.entries])

    def names(self, column: str) -> Names:
        return self._coded([getattr(entry, column) for entry in self.entries])

    def split(self, column: str) -> Names:
        return self._coded([entry.splits[column] for entry in self.entries])

    def _coded(self, texts: Sequence[str]) -> Names:
        names = tuple(dict.fromkeys(texts))
        return Names(np.array([names.index(text) for text in texts], np.int64), names)
