"""The videos that features belong to, column by column.

Shape legend: V videos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmd_extract.schema import VideoEntry

LABEL_KINDS = ("label", "group")


@dataclass(frozen=True, kw_only=True)
class VideoTable:
    """V videos, column by column, in the order of their features.

    Attributes:
        ids, labels, groups, fingerprints: as in the shards.
        splits: split column to the part of each video; an empty part means neither.
        frame_counts: frames of each video.
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
                raise ValueError(f"splits: {len(parts)} parts of {name} for {len(self.ids)} videos")

    @classmethod
    def of(cls, entries: Sequence[VideoEntry]) -> VideoTable:
        """The videos of shards."""
        columns = list(dict.fromkeys(name for entry in entries for name in entry.splits))
        return cls(
            ids=tuple(entry.video_id for entry in entries),
            labels=tuple(entry.label for entry in entries),
            groups=tuple(entry.group for entry in entries),
            fingerprints=tuple(entry.fingerprint for entry in entries),
            splits={name: tuple(entry.splits.get(name, "") for entry in entries) for name in columns},
            frame_counts=tuple(entry.frame_count for entry in entries),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def names(self, kind: str) -> tuple[str, ...]:
        """The label or the group of each video; empty where it has none.

        Raises:
            ValueError: ``kind`` is neither ``label`` nor ``group``.
        """
        if kind not in LABEL_KINDS:
            raise ValueError(f"kind: {kind!r} is not one of {', '.join(LABEL_KINDS)}")
        return self.labels if kind == "label" else self.groups

    def part(self, split_column: str, part: str) -> NDArray[np.int64]:
        """Numbers of the videos in one part of a split, (any,) int64, ascending.

        Raises:
            ValueError: the split column does not exist, or no video is in the part.
        """
        if split_column not in self.splits:
            raise ValueError(
                f"split_column: {split_column!r} is not among the videos' columns; "
                f"they have {', '.join(self.splits) or 'none'}"
            )
        parts = self.splits[split_column]
        rows = np.array([row for row, own in enumerate(parts) if own == part and part], np.int64)
        if not len(rows):
            present = ", ".join(sorted(set(parts) - {""}))
            raise ValueError(f"part: no video of {split_column} is in {part!r}; its parts are {present or 'all empty'}")
        return rows

    def labelled(self, rows: NDArray[np.int64], kind: str, where: str) -> NDArray[np.int64]:
        """Those of some rows that have a label (or group).

        Args:
            rows: numbers of videos.
            kind: ``label`` or ``group``.
            where: what the rows are, for the message.

        Raises:
            ValueError: none has.
        """
        names = self.names(kind)
        kept = np.array([row for row in rows if names[row]], np.int64)
        if not len(kept):
            raise ValueError(f"{kind}: no video of {where} has one")
        return kept
