"""Metadata of the videos that features belong to, in columns.

Shape legend: V videos.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmd_extract.shard.videos import Videos

TARGETS = ("label", "group")
"""What retrieval and probes can be evaluated for."""
EXCLUSIONS = ("group", "source")
"""What a gallery video may share with the query and then be excluded."""
_SEGMENT = re.compile(r"#\d{4,}$")


@dataclass(frozen=True, kw_only=True)
class VideoTable:
    """Metadata of V videos in columns, in the order of their features.

    Attributes:
        ids, labels, groups, fingerprints: as in the shards.
        splits: part of each video for each split column; empty if the video is in no part.
        frame_counts: number of frames of each video.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    fingerprints: tuple[str, ...]
    splits: Mapping[str, tuple[str, ...]]
    frame_counts: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("labels", "groups", "fingerprints", "frame_counts"):
            if len(getattr(self, name)) != len(self.ids):
                raise ValueError(f"{name}: {len(getattr(self, name))} values for {len(self.ids)} videos")
        for name, parts in self.splits.items():
            if len(parts) != len(self.ids):
                raise ValueError(f"splits: {len(parts)} values of {name} for {len(self.ids)} videos")

    @classmethod
    def of(cls, videos: Videos) -> VideoTable:
        """Create the table of the videos of a shard set."""
        return cls(
            ids=tuple(videos.texts("video_id")),
            labels=videos.names("label").texts(),
            groups=videos.names("group").texts(),
            fingerprints=tuple(videos.texts("fingerprint")),
            splits={name: videos.split(name).texts() for name in videos.split_columns},
            frame_counts=tuple(videos.numbers("frame_count").tolist()),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def files(self) -> tuple[str, ...]:
        """Manifest id of each video: segments of one file (``ID#0000``, ``ID#0001``, ...) share it."""
        return tuple(_SEGMENT.sub("", name) for name in self.ids)

    @functools.cached_property
    def units(self) -> tuple[str, ...]:
        """Name of what each video shares with others that resemble it: its group, or else the source of its segments.

        Empty for a video without a group whose source file has no other segments.
        """
        count = Counter(self.fingerprints)
        rows = zip(self.groups, self.fingerprints, strict=True)
        return tuple(group or (source if count[source] > 1 else "") for group, source in rows)

    def exclusion_numbers(self, what: str) -> NDArray[np.int64]:
        """Return a number (V,) for each video that is equal for videos of the same group or source file.

        Args:
            what: ``group`` or ``source``; segments without a group have the number of their source.
        """
        names = self.units if what == "group" else self.fingerprints
        keys = [name or ("", row) for row, name in enumerate(names)]
        number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return np.array([number_of[key] for key in keys], np.int64)

    def names(self, target: str) -> tuple[str, ...]:
        """Return the label or the group of each video; empty strings where it is missing.

        Raises:
            ValueError: ``target`` is neither ``label`` nor ``group``.
        """
        if target not in TARGETS:
            raise ValueError(f"target: {target!r} is not one of {', '.join(TARGETS)}")
        return self.labels if target == "label" else self.groups

    def part(self, split_column: str, part: str) -> NDArray[np.int64]:
        """Return the row numbers of the videos in one part of a split, ascending.

        Raises:
            ValueError: the split column does not exist, or the part contains no videos.
        """
        if split_column not in self.splits:
            raise ValueError(
                f"split_column: {split_column!r} is not in the shards; available: {', '.join(self.splits) or 'none'}"
            )
        parts = self.splits[split_column]
        rows = np.array([row for row, own in enumerate(parts) if own == part and part], np.int64)
        if not len(rows):
            available = ", ".join(sorted(set(parts) - {""})) or "none"
            raise ValueError(f"part: {part!r} of {split_column} contains no videos; parts with videos: {available}")
        return rows

    def labeled(self, rows: NDArray[np.int64], target: str, where: str) -> NDArray[np.int64]:
        """Return the rows of the videos that have a label (or group).

        Args:
            rows: row numbers.
            target: ``label`` or ``group``.
            where: description of the rows, for the error message.

        Raises:
            ValueError: no video has a label (or group).
        """
        names = self.names(target)
        kept = np.array([row for row in rows if names[row]], np.int64)
        if not len(kept):
            raise ValueError(f"{target}: no video in {where} has a {target}; add a {target} column to the manifest")
        return kept
