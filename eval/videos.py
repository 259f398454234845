"""The videos that features belong to, by column; which of them ask and which are found; and what must not be in both.

Shape legend: V videos.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from extract.schema import VideoEntry

LABEL_KINDS = ("label", "group")
_SHOWN = 5


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
        """Rows of the videos in one part of a split.

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


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Which videos ask, or are tested, and which are found, or trained on.

    Attributes:
        split_column: the split; ``leave-one-out`` where every video asks all others.
        query_part, gallery_part: its two parts.
        kind: ``label`` or ``group``.
        query, gallery: rows of the videos; equal in leave-one-out.
        unlabelled: videos of both parts that lack the label and were left out.
    """

    split_column: str
    query_part: str
    gallery_part: str
    kind: str
    query: NDArray[np.int64]
    gallery: NDArray[np.int64]
    unlabelled: int

    @property
    def leave_one_out(self) -> bool:
        """Whether every video asks all others."""
        return self.split_column == LEAVE_ONE_OUT


LEAVE_ONE_OUT = "leave-one-out"


def pair_parts(videos: VideoTable, split_column: str, query_part: str, gallery_part: str, kind: str) -> Pairing:
    """The labelled videos of two parts of a split, after a check that no video or file is in both.

    Raises:
        ValueError: the split or a part does not exist, no video has the label, or a video or its file is in both.
    """
    asked, found = videos.part(split_column, query_part), videos.part(split_column, gallery_part)
    query = videos.labelled(asked, kind, f"{split_column}'s part {query_part!r}")
    gallery = videos.labelled(found, kind, f"{split_column}'s part {gallery_part!r}")
    check_leakage(videos, query, gallery)
    return Pairing(
        split_column=split_column,
        query_part=query_part,
        gallery_part=gallery_part,
        kind=kind,
        query=query,
        gallery=gallery,
        unlabelled=len(asked) + len(found) - len(query) - len(gallery),
    )


def pair_all(videos: VideoTable, kind: str) -> Pairing:
    """Every labelled video against all others, after a check that no file is there twice.

    Raises:
        ValueError: no video has the label, or two videos are of one file.
    """
    rows = videos.labelled(np.arange(len(videos)), kind, "the shards")
    _refuse_twins(videos, rows)
    return Pairing(
        split_column=LEAVE_ONE_OUT,
        query_part="all",
        gallery_part="all others",
        kind=kind,
        query=rows,
        gallery=rows,
        unlabelled=len(videos) - len(rows),
    )


def check_leakage(videos: VideoTable, query: NDArray[np.int64], gallery: NDArray[np.int64]) -> None:
    """Refuses a gallery that holds a query: the same id, or the same source file, told by its bytes.

    Raises:
        ValueError: names the first such video.
    """
    by_id = {videos.ids[row]: row for row in gallery}
    by_print = {videos.fingerprints[row]: row for row in gallery}
    for row in query:
        if videos.ids[row] in by_id:
            raise ValueError(
                f"video {videos.ids[row]} is in the query part and in the gallery part; a hit would mean nothing: "
                "name two different parts"
            )
        twin = by_print.get(videos.fingerprints[row])
        if twin is not None:
            raise ValueError(
                f"query {videos.ids[row]} and gallery video {videos.ids[twin]} are the same file; "
                "a hit would mean nothing: remove one of them from its part"
            )


def _refuse_twins(videos: VideoTable, rows: NDArray[np.int64]) -> None:
    seen: dict[str, int] = {}
    for row in rows:
        first = seen.setdefault(videos.fingerprints[row], int(row))
        if first != row:
            raise ValueError(
                f"videos {videos.ids[first]} and {videos.ids[row]} are the same file, and each would find the other; "
                "a hit would mean nothing: keep one of them"
            )


def pairing_notes(videos: VideoTable, pairing: Pairing) -> list[str]:
    """What to know of the two sides: videos left out, groups that are on both, queries that no video could answer.

    By group, and in leave-one-out, groups are on both sides by intention.
    """
    notes = []
    if pairing.unlabelled:
        notes.append(
            f"{pairing.split_column}: {pairing.unlabelled} videos of the two parts have no {pairing.kind} "
            "and were left out"
        )
    if pairing.kind == "label" and not pairing.leave_one_out:
        asked = Counter(videos.groups[row] for row in pairing.query)
        both = sorted((set(asked) & {videos.groups[row] for row in pairing.gallery}) - {""})
        if both:
            shown = ", ".join(both[:_SHOWN]) + (", ..." if len(both) > _SHOWN else "")
            notes.append(
                f"warning: {pairing.split_column}: {len(both)} groups are in both parts ({shown}), with "
                f"{sum(asked[name] for name in both)} of {len(pairing.query)} queries; what is alike within a group "
                "may make hits"
            )
    names = videos.names(pairing.kind)
    offered = {names[row] for row in pairing.gallery}
    lost = sum(names[row] not in offered for row in pairing.query)
    if lost:
        notes.append(
            f"{pairing.split_column}: {lost} of {len(pairing.query)} queries have a {pairing.kind} that is not in part "
            f"{pairing.gallery_part!r}, so nothing can be right; `cmd-eval retrieval --leave-one-out` asks all videos"
        )
    return notes
