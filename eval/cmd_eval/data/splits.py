"""Which videos ask and which are found.

Shape legend: V videos.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmd_eval.data.leakage import check_leakage, group_notes, refuse_copies
from cmd_eval.data.table import VideoTable
from cmd_eval.results.schema import LEAVE_ONE_OUT


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
    refuse_copies(videos, rows)
    return Pairing(
        split_column=LEAVE_ONE_OUT,
        query_part="all",
        gallery_part="all others",
        kind=kind,
        query=rows,
        gallery=rows,
        unlabelled=len(videos) - len(rows),
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
        notes += group_notes(videos, pairing.query, pairing.gallery, pairing.split_column, "queries")
    names = videos.names(pairing.kind)
    if pairing.leave_one_out:
        members = Counter(names[row] for row in pairing.query)
        if alone := sum(count == 1 for count in members.values()):
            notes.append(f"{LEAVE_ONE_OUT}: {alone} videos share their {pairing.kind} with no other and do not ask")
    offered = {names[row] for row in pairing.gallery}
    lost = sum(names[row] not in offered for row in pairing.query)
    if lost:
        notes.append(
            f"{pairing.split_column}: {lost} of {len(pairing.query)} queries have a {pairing.kind} that is not in part "
            f"{pairing.gallery_part!r}, so nothing can be right; `cmd-eval retrieval --leave-one-out` asks all videos"
        )
    return notes
