"""What must not be on both sides of an evaluation, and what a network has seen of the videos that it is tested on.

A file counts as seen under whatever name it was trained on: copies are told by their bytes. What the network began from
counts, too, as far as it is on record.

Shape legend: V videos.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmd_eval.data.table import VideoTable
from cmd_eval.results.schema import Provenance
from cmd_train.config import config_from_dict

Rows = NDArray[np.int64]
"""Numbers of videos."""

_SHOWN = 5


def check_leakage(videos: VideoTable, query: Rows, gallery: Rows) -> None:
    """Refuses a gallery that holds a query: the same id, or the same source file, told by its bytes.

    Raises:
        ValueError: names the first such video.
    """
    pairs = shared_videos(videos, query, gallery)
    if not pairs:
        return
    row, other = pairs[0]
    if videos.ids[row] == videos.ids[other]:
        raise ValueError(
            f"video {videos.ids[row]} is in the query part and in the gallery part; a hit would mean nothing: "
            "name two different parts"
        )
    raise ValueError(
        f"query {videos.ids[row]} and gallery video {videos.ids[other]} are the same file; "
        "a hit would mean nothing: remove one of them from its part"
    )


def refuse_trained(videos: VideoTable, tested: Rows, trained: Rows) -> None:
    """Refuses to test a classifier on videos that it was trained on, or on copies of them.

    Raises:
        ValueError: says how many there are and names the first.
    """
    pairs = shared_videos(videos, tested, trained)
    if not pairs:
        return
    row, other = pairs[0]
    if videos.ids[row] == videos.ids[other]:
        raise ValueError(
            f"the checkpoint was trained on {len(pairs)} of the {len(tested)} test videos, {videos.ids[row]} for one; "
            "the figure would mean nothing: test on a part that it was not trained on"
        )
    raise ValueError(
        f"test video {videos.ids[row]} and training video {videos.ids[other]} are the same file; "
        "the figure would mean nothing: remove one of them from its part"
    )


def refuse_copies(videos: VideoTable, rows: Rows) -> None:
    """Refuses two videos of one file where every video asks all others.

    Raises:
        ValueError: names the first two.
    """
    seen: dict[str, int] = {}
    for row in rows:
        first = seen.setdefault(videos.fingerprints[row], int(row))
        if first != row:
            raise ValueError(
                f"videos {videos.ids[first]} and {videos.ids[row]} are the same file, and each would find the other; "
                "a hit would mean nothing: keep one of them"
            )


def shared_videos(videos: VideoTable, rows: Rows, others: Rows) -> list[tuple[int, int]]:
    """Those of some videos that are among others, too, or a copy of them: the numbers of both, the same ids first."""
    by_id = {videos.ids[row]: int(row) for row in others}
    by_print = {videos.fingerprints[row]: int(row) for row in others}
    same = [(int(row), by_id[videos.ids[row]]) for row in rows if videos.ids[row] in by_id]
    copies = [
        (int(row), by_print[videos.fingerprints[row]])
        for row in rows
        if videos.ids[row] not in by_id and videos.fingerprints[row] in by_print
    ]
    return same + copies


def group_notes(videos: VideoTable, tested: Rows, others: Rows, where: str, what: str) -> list[str]:
    """A warning if groups are on both sides.

    Args:
        videos: all of them.
        tested, others: the two sides.
        where: the split.
        what: what the tested ones are called, in the plural.
    """
    asked = Counter(videos.groups[row] for row in tested)
    both = sorted((set(asked) & {videos.groups[row] for row in others}) - {""})
    if not both:
        return []
    shown = ", ".join(both[:_SHOWN]) + (", ..." if len(both) > _SHOWN else "")
    count = sum(asked[name] for name in both)
    return [
        f"warning: {where}: {len(both)} groups are in both parts ({shown}), with {count} of {len(tested)} {what}; "
        "what is alike within a group may make hits"
    ]


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """What a network was trained on, as its checkpoint says.

    Attributes:
        data_hash: of the shards; None if they are not known.
        split_column: None for all videos.
        part: the part of that split.
    """

    data_hash: str | None
    split_column: str | None
    part: str

    def rows(self, videos: VideoTable, data_hash: str) -> Rows | None:
        """Which videos of a shard set were trained on; None if it was another set, where nobody knows."""
        if self.data_hash != data_hash:
            return None
        if self.split_column is None:
            return np.arange(len(videos))
        return np.flatnonzero([part == self.part for part in videos.splits[self.split_column]])


def training_sets(provenance: Provenance) -> list[TrainingSet]:
    """What a network was trained on: by its own training first, then by what that began from, and so on.

    Empty for what is no network, and for one as it was before training.
    """
    if provenance.settings is None or provenance.untrained:
        return []
    data = config_from_dict(provenance.settings).data
    found = [TrainingSet(data_hash=provenance.trained_on, split_column=data.split_column, part=data.part)]
    before = _trained_on(provenance.began_from)
    while before is not None:
        found.append(
            TrainingSet(
                data_hash=before.get("data_hash"), split_column=before.get("split_column"), part=before.get("part", "")
            )
        )
        before = _trained_on(before.get("began_from"))
    return found


def _trained_on(start: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Of a start that says nothing of its training: one on data that are not known."""
    return None if start is None else start.get("trained_on") or {}


def training_notes(provenance: Provenance, videos: VideoTable, tested: Rows, where: str, what: str) -> list[str]:
    """Whether the network has seen the videos that it is asked about.

    Args:
        provenance: of its features or probabilities.
        videos: all videos of the shards.
        tested: the ones that it is asked about.
        where: the split.
        what: what they are called, in the plural.
    """
    notes = []
    for number, training in enumerate(training_sets(provenance)):
        who = "what the checkpoint began from" if number else "the checkpoint"
        trained = training.rows(videos, provenance.data_hash)
        if trained is None:
            notes.append(f"{who} was trained on other shards; whether they held {what} is not known")
            continue
        seen = len(shared_videos(videos, tested, trained))
        if seen:
            notes.append(f"warning: {where}: {who} was trained on {seen} of the {len(tested)} {what}")
    return list(dict.fromkeys(notes))
