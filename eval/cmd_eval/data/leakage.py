"""Leakage checks: videos on both sides of an evaluation, and test videos that a network was trained on.

Copies of a file are recognized by their content, whatever their ids. The training data of a network's initial weights
is checked as well, as far as it is recorded.
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
from cmd_extract.schema import is_relabeled
from cmd_train.config import config_from_dict

Rows = NDArray[np.int64]
"""Row numbers of videos."""

_MAX_LISTED = 5
_REMEDY = "(`cmd-extract relabel`), or use --skip-copies (retrieval, baseline, probe, recognition)"


def check_leakage(videos: VideoTable, query: Rows, gallery: Rows) -> None:
    """Check that no query is in the gallery, by id or as a copy of the same file.

    Raises:
        ValueError: a query is in the gallery; the message names the first one.
    """
    pairs = shared_videos(videos, query, gallery)
    if not pairs:
        return
    row, other = pairs[0]
    if videos.ids[row] == videos.ids[other]:
        raise ValueError(
            f"video {videos.ids[row]} is both a query and in the gallery, which would invalidate the result; "
            "choose different parts with --test-part and --train-part"
        )
    raise ValueError(
        f"query {videos.ids[row]} and gallery video {videos.ids[other]} are the same file, which would invalidate the "
        f"result; remove one of them from its part {_REMEDY}"
    )


def check_not_trained_on(videos: VideoTable, tested: Rows, trained: Rows) -> None:
    """Check that a classifier was not trained on any of its test videos, or on copies of them.

    Raises:
        ValueError: it was; the message names the first such video and their number.
    """
    pairs = shared_videos(videos, tested, trained)
    if not pairs:
        return
    row, other = pairs[0]
    if videos.ids[row] == videos.ids[other]:
        raise ValueError(
            f"the checkpoint was trained on {len(pairs)} of the {len(tested)} test videos, for example "
            f"{videos.ids[row]}; choose a part that it was not trained on with --test-part"
        )
    raise ValueError(
        f"test video {videos.ids[row]} and training video {videos.ids[other]} are the same file, which would "
        f"invalidate the result; remove one of them from its part {_REMEDY}"
    )


def check_no_copies(videos: VideoTable, rows: Rows) -> None:
    """Check that no two videos come from the same file, for leave-one-out; segments of one file are allowed.

    Raises:
        ValueError: two do; the message names them.
    """
    seen: dict[str, int] = {}
    for row in rows:
        first = seen.setdefault(videos.fingerprints[row], int(row))
        if videos.files[first] != videos.files[row]:
            raise ValueError(
                f"videos {videos.ids[first]} and {videos.ids[row]} are the same file, so each would find the other; "
                "use --skip-copies (retrieval, baseline), or remove one of them from the manifest"
            )


def without_copies(videos: VideoTable, rows: Rows, others: Rows) -> Rows:
    """Return the rows without copies of files among ``others`` under another id.

    Raises:
        ValueError: all rows are such copies.
    """
    ids, fingerprints = {videos.ids[row] for row in others}, {videos.fingerprints[row] for row in others}
    kept = [row for row in rows if videos.ids[row] in ids or videos.fingerprints[row] not in fingerprints]
    if len(rows) and not kept:
        raise ValueError(
            f"--skip-copies: all {len(rows)} tested videos are copies of training videos; change the split"
        )
    return np.array(kept, np.int64)


def first_of_copies(videos: VideoTable, rows: Rows) -> Rows:
    """Return the rows without those whose file is that of an earlier row; segments of one file are kept."""
    first: dict[str, str] = {}
    kept = [row for row in rows if first.setdefault(videos.fingerprints[row], videos.files[row]) == videos.files[row]]
    return np.array(kept, np.int64)


def shared_videos(videos: VideoTable, rows: Rows, others: Rows) -> list[tuple[int, int]]:
    """Return pairs of a row and its match among ``others``: those with the same id first, then copies of a file."""
    by_id = {videos.ids[row]: int(row) for row in others}
    by_fingerprint = {videos.fingerprints[row]: int(row) for row in others}
    same = [(int(row), by_id[videos.ids[row]]) for row in rows if videos.ids[row] in by_id]
    copies = [
        (int(row), by_fingerprint[videos.fingerprints[row]])
        for row in rows
        if videos.ids[row] not in by_id and videos.fingerprints[row] in by_fingerprint
    ]
    return same + copies


def group_notes(videos: VideoTable, tested: Rows, others: Rows, where: str, what: str) -> list[str]:
    """Return a warning if groups are on both sides.

    Args:
        videos: all videos.
        tested, others: rows of the two sides.
        where: name of the split.
        what: plural noun for the tested videos, such as ``queries``.
    """
    tested_groups = Counter(videos.groups[row] for row in tested)
    shared = sorted((set(tested_groups) & {videos.groups[row] for row in others}) - {""})
    if not shared:
        return []
    listed = ", ".join(shared[:_MAX_LISTED]) + (", ..." if len(shared) > _MAX_LISTED else "")
    count = sum(tested_groups[name] for name in shared)
    return [
        f"warning: {where}: {len(shared)} groups are in both parts ({listed}), with {count} of {len(tested)} {what}; "
        "near-duplicates within a group may inflate the result"
    ]


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Training data of a network, as recorded in its checkpoint.

    Attributes:
        data_hash: hash of the shards; None if unknown.
        split_column: split column; None for all videos.
        part: part of that split.
        labeled_only: whether videos without a label were left out, as by fine-tuning.
        count: number of videos that were trained on, if known.
    """

    data_hash: str | None
    split_column: str | None
    part: str
    labeled_only: bool = False
    count: int | None = None

    def rows(self, videos: VideoTable, data_hash: str) -> Rows | None:
        """Return the rows of a shard set that were trained on.

        All rows, if the network was trained on all videos of the same shards before they were relabeled; None if it was
        trained on some of them then, or on other shards.
        """
        used_all = self.split_column is None and (not self.labeled_only or self.count == len(videos))
        if used_all and is_relabeled(self.data_hash, data_hash):
            return np.arange(len(videos))
        if self.data_hash != data_hash:
            return None
        parts = [self.part] * len(videos) if self.split_column is None else videos.splits[self.split_column]
        used = [part == self.part for part in parts]
        if self.labeled_only:
            used = [own and bool(label) for own, label in zip(used, videos.labels, strict=True)]
        return np.flatnonzero(used)


def training_sets(
    provenance: Provenance, *, classifier: bool = False, trained_videos: int | None = None
) -> list[TrainingSet]:
    """Return the training data of a network's own run, then of its initial weights, and so on.

    The list is empty for hand-crafted features and for untrained networks.

    Args:
        provenance: provenance of the features or probabilities.
        classifier: whether the network is a classifier, and thus was trained on labeled videos only.
        trained_videos: number of videos that it was trained on, if known.
    """
    if provenance.settings is None or provenance.untrained:
        return []
    data = config_from_dict(provenance.settings).data
    sets = [
        TrainingSet(
            data_hash=provenance.trained_on,
            split_column=data.split_column,
            part=data.train_part,
            labeled_only=classifier,
            count=trained_videos,
        )
    ]
    before = _trained_on(provenance.initial_weights)
    while before is not None:
        sets.append(
            TrainingSet(
                data_hash=before.get("data_hash"),
                split_column=before.get("split_column"),
                part=before.get("train_part", ""),
            )
        )
        before = _trained_on(before.get("initial_weights"))
    return sets


def _trained_on(initial: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the training record of initial weights: empty if unknown, None without initial weights."""
    return None if initial is None else initial.get("trained_on") or {}


def training_notes(
    provenance: Provenance,
    videos: VideoTable,
    tested: Rows,
    where: str,
    what: str,
    *,
    classifier: bool = False,
    trained_videos: int | None = None,
) -> list[str]:
    """Return notes on test videos that the network, or its initial weights, were trained on.

    Args:
        provenance: provenance of the features or probabilities.
        videos: all videos of the shards.
        tested: rows of the test videos.
        where: name of the split.
        what: plural noun for the test videos, such as ``queries``.
        classifier, trained_videos: see ``training_sets``.
    """
    notes = []
    sets = training_sets(provenance, classifier=classifier, trained_videos=trained_videos)
    for number, training in enumerate(sets):
        who, verb = ("the checkpoint's initial weights", "were") if number else ("the checkpoint", "was")
        trained = training.rows(videos, provenance.data_hash)
        if trained is None and is_relabeled(training.data_hash, provenance.data_hash):
            column = training.split_column
            used = "the videos with a label" if column is None else f"part {training.part!r} of {column}"
            notes.append(
                f"{who} {verb} trained on {used} before the shards were relabeled; whether {what} were among them is "
                "unknown"
            )
            continue
        if trained is None:
            notes.append(f"{who} {verb} trained on other shards; whether these contain {what} is unknown")
            continue
        seen = len(shared_videos(videos, tested, trained))
        if seen:
            notes.append(f"warning: {where}: {who} {verb} trained on {seen} of the {len(tested)} {what}")
    return list(dict.fromkeys(notes))
