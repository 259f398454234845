"""Several output folders, extracted with the same settings, as one sequence of videos."""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from cmd_extract import schema
from cmd_extract.errors import ShardError
from cmd_extract.shard.reader import ShardReader, ShardSet
from cmd_extract.shard.videos import JoinedVideos

Folders = Path | Sequence[Path]
"""One output folder of ``cmd-extract run``, or several."""


class JoinedShardSet(ShardSet):
    """The shards of several output folders, used like those of one.

    The id of a video is preceded by the number of its folder and a slash, as in ``2/video``; labels, groups and splits
    are those of the folders. Numbers rather than names, so that moved folders remain the same data.

    Args:
        folders: at least two output folders; their order is part of ``data_hash``.

    Attributes:
        folders, videos, header, config_hash: as in ``ShardSet``. A video is in no part of the split columns that only
            other folders have.
        data_hash: hash of the data hashes of all folders.

    Raises:
        ShardError: a folder cannot be opened, was extracted with other settings than the first one, or has the same
            content as another one.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._sets = [ShardSet(folder) for folder in folders]
        self._check()
        self.header, self.config_hash = self._sets[0].header, self._sets[0].config_hash
        self.data_hash = schema.join_data_hashes([each.data_hash for each in self._sets])
        self._first_shards = [0, *itertools.accumulate(each.shard_count for each in self._sets)]
        self.videos = JoinedVideos([each.videos for each in self._sets], self._first_shards)

    @property
    def shard_count(self) -> int:
        """Number of shards of all folders."""
        return self._first_shards[-1]

    def _check(self) -> None:
        first = self._sets[0]
        for number, (folder, each) in enumerate(zip(self.folders, self._sets, strict=True)):
            if each.config_hash != first.config_hash:
                ours, theirs = first.header.config, each.header.config
                names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
                listed = ", ".join(f"{name} {theirs.get(name)!r} instead of {ours.get(name)!r}" for name in names)
                raise ShardError(
                    f"{folder}: extracted with other settings than {self.folders[0]}: {listed}; extract both with the "
                    "same settings"
                )
            for earlier in self._sets[:number]:
                if each.data_hash == earlier.data_hash or schema.is_relabeled(each.data_hash, earlier.data_hash):
                    raise ShardError(f"{folder}: the same videos as {earlier.folders[0]}; give each folder once")

    @property
    def totals(self) -> dict[str, int]:
        """Totals over all folders, see ``ShardSet.totals``."""
        totals = [each.totals for each in self._sets]
        return {key: sum(each[key] for each in totals) for key in totals[0]}

    def _reader(self, shard: int) -> ShardReader:
        folder = bisect.bisect_right(self._first_shards, shard) - 1
        return self._sets[folder]._reader(shard - self._first_shards[folder])


def open_folders(folders: Folders) -> ShardSet:
    """Open the shards of one output folder or of several.

    Raises:
        ShardError: see ``ShardSet`` and ``JoinedShardSet``.
    """
    given = [folders] if isinstance(folders, Path) else list(folders)
    return ShardSet(given[0]) if len(given) == 1 else JoinedShardSet(given)


def folder_paths(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the paths of one folder or of several.

    Raises:
        ValueError: the sequence is empty.
    """
    paths = [Path(given)] if isinstance(given, (str, os.PathLike)) else [Path(each) for each in given]
    if not paths:
        raise ValueError("folder: no folder given")
    return paths


def join_paths(folders: Folders) -> str:
    """Return the absolute paths of folders as one text, separated like those of ``PATH``."""
    given = [folders] if isinstance(folders, Path) else folders
    return os.pathsep.join(str(folder.resolve()) for folder in given)


def split_paths(text: str) -> tuple[Path, ...]:
    """Return the folders in a text of ``join_paths``."""
    # The name of a single folder may contain the separator.
    return (Path(text),) if Path(text).is_dir() else tuple(map(Path, text.split(os.pathsep)))
