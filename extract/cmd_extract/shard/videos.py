"""Videos of shards as a sequence whose metadata stay in columns: an entry is created when it is accessed."""

from __future__ import annotations

import bisect
import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from cmd_extract.schema import VideoEntry


class Names(NamedTuple):
    """A text column with few values.

    Attributes:
        codes: (V,) int64, index of each video's value in ``names``.
        names: the values; the videos need not have all of them.
    """

    codes: NDArray[np.int64]
    names: tuple[str, ...]

    @property
    def used(self) -> list[str]:
        """The values that some video has, sorted, without the empty text."""
        return sorted({self.names[code] for code in np.unique(self.codes).tolist()} - {""})

    def where(self, name: str) -> NDArray[np.int64]:
        """Return the numbers of the videos that have a value, ascending."""
        code = self.names.index(name) if name in self.names else -1
        return np.flatnonzero(self.codes == code)

    def texts(self) -> tuple[str, ...]:
        """Return the value of each video."""
        return tuple(map(self.names.__getitem__, self.codes.tolist()))


class Videos(Sequence[VideoEntry]):
    """Videos in a fixed order, V in number.

    Loops over entries take some microseconds per video. The methods that return columns are for millions of videos.

    Attributes:
        split_columns: names of the split columns.
    """

    split_columns: tuple[str, ...]

    @abstractmethod
    def entry(self, number: int) -> VideoEntry:
        """Return the video with a number from 0 to V - 1."""

    @abstractmethod
    def numbers(self, column: str) -> NDArray[Any]:
        """Return (V,) values of a numeric column, read-only.

        Args:
            column: ``row``, ``frame_count``, ``fps``, ``source_width``, ``source_height``, ``keyframe_count`` or
                ``shard``.
        """

    @abstractmethod
    def texts(self, column: str) -> Iterator[str]:
        """Yield the values of a text column with mostly different values: ``video_id`` or ``fingerprint``."""

    @abstractmethod
    def names(self, column: str) -> Names:
        """Return a text column with few values: ``label``, ``group`` or ``codec``."""

    @abstractmethod
    def split(self, column: str) -> Names:
        """Return the parts of a split column.

        Raises:
            KeyError: there is no such split column.
        """

    def select(self, chosen: Sequence[int] | NDArray[np.int64]) -> Videos:
        """Return the videos with these numbers, in this order."""
        return SelectedVideos(self, np.asarray(chosen, np.int64))

    def find(self, video_ids: Iterable[str]) -> dict[str, int]:
        """Return the number of each of these videos; unknown ids are missing."""
        wanted = set(video_ids)
        return {text: number for number, text in enumerate(self.texts("video_id")) if text in wanted}

    @overload
    def __getitem__(self, number: int) -> VideoEntry: ...

    @overload
    def __getitem__(self, number: slice) -> Videos: ...

    def __getitem__(self, number: int | slice) -> VideoEntry | Videos:
        if isinstance(number, slice):
            return self.select(np.arange(len(self))[number])
        if not -len(self) <= number < len(self):
            raise IndexError(f"video {number} of {len(self)}")
        return self.entry(int(number) % len(self))

    def __iter__(self) -> Iterator[VideoEntry]:
        return map(self.entry, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Videos):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment] # like other containers that compare their items

    def __repr__(self) -> str:
        return f"<{len(self)} videos>"


class SelectedVideos(Videos):
    """Some of the videos of a sequence.

    Args:
        videos: the sequence.
        chosen: (V,) int64, their numbers in it.
    """

    def __init__(self, videos: Videos, chosen: NDArray[np.int64]) -> None:
        self._videos, self._chosen = videos, chosen
        self.split_columns = videos.split_columns

    def select(self, chosen: Sequence[int] | NDArray[np.int64]) -> Videos:
        """See ``Videos.select``."""
        return SelectedVideos(self._videos, self._chosen[np.asarray(chosen, np.int64)])

    def __len__(self) -> int:
        return len(self._chosen)

    def entry(self, number: int) -> VideoEntry:
        """See ``Videos.entry``."""
        return self._videos.entry(int(self._chosen[number]))

    def numbers(self, column: str) -> NDArray[Any]:
        """See ``Videos.numbers``."""
        values: NDArray[Any] = self._videos.numbers(column)[self._chosen]
        return values

    def texts(self, column: str) -> Iterator[str]:
        """See ``Videos.texts``."""
        every = np.fromiter(self._videos.texts(column), object, len(self._videos))
        return iter(every[self._chosen].tolist())

    def names(self, column: str) -> Names:
        """See ``Videos.names``."""
        return self._selected(self._videos.names(column))

    def split(self, column: str) -> Names:
        """See ``Videos.split``."""
        return self._selected(self._videos.split(column))

    def _selected(self, found: Names) -> Names:
        return Names(found.codes[self._chosen], found.names)


class JoinedVideos(Videos):
    """The videos of several folders, one folder after the other.

    The id of a video is preceded by the number of its folder, and its shard is counted over all folders. It is in no
    part of the split columns that only other folders have.

    Args:
        parts: videos of each folder.
        first_shards: number of shards in the folders before.
    """

    def __init__(self, parts: Sequence[Videos], first_shards: Sequence[int]) -> None:
        self._parts, self._first_shards = tuple(parts), tuple(first_shards)
        self._starts = [0, *itertools.accumulate(map(len, parts))]
        self.split_columns = tuple(dict.fromkeys(name for part in parts for name in part.split_columns))

    def __len__(self) -> int:
        return self._starts[-1]

    def entry(self, number: int) -> VideoEntry:
        """See ``Videos.entry``."""
        folder = bisect.bisect_right(self._starts, number) - 1
        entry = self._parts[folder].entry(number - self._starts[folder])
        return replace(
            entry,
            video_id=f"{folder + 1}/{entry.video_id}",
            splits=dict.fromkeys(self.split_columns, "") | dict(entry.splits),
            shard=self._first_shards[folder] + entry.shard,
        )

    def numbers(self, column: str) -> NDArray[Any]:
        """See ``Videos.numbers``."""
        first = self._first_shards if column == "shard" else [0] * len(self._parts)
        return np.concatenate([part.numbers(column) + start for part, start in zip(self._parts, first, strict=False)])

    def texts(self, column: str) -> Iterator[str]:
        """See ``Videos.texts``."""
        for folder, part in enumerate(self._parts, start=1):
            if column == "video_id":
                yield from (f"{folder}/{text}" for text in part.texts(column))
            else:
                yield from part.texts(column)

    def names(self, column: str) -> Names:
        """See ``Videos.names``."""
        return _join([part.names(column) for part in self._parts])

    def split(self, column: str) -> Names:
        """See ``Videos.split``."""
        if column not in self.split_columns:
            raise KeyError(column)
        return _join([
            part.split(column) if column in part.split_columns else Names(np.zeros(len(part), np.int64), ("",))
            for part in self._parts
        ])  # fmt: skip


def _join(columns: Sequence[Names]) -> Names:
    code_of = {name: code for code, name in enumerate(dict.fromkeys(name for c in columns for name in c.names))}
    codes = [np.array([code_of[name] for name in c.names], np.int64)[c.codes] for c in columns]
    return Names(np.concatenate(codes), tuple(code_of))
