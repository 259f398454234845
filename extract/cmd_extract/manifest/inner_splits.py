"""Inner splits: folds of the training part of a split, on which settings are chosen without its test part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from cmd_extract.errors import ManifestError
from cmd_extract.schema import VideoRecord

TRAIN_PART, TEST_PART = "train", "test"


def inner_column(column: str, fold: int) -> str:
    """Return the name of an inner split: ``split1-inner2``."""
    return f"{column}-inner{fold}"


def add_inner_splits(records: Sequence[VideoRecord], column: str, folds: int) -> tuple[VideoRecord, ...]:
    """Add one split column per fold, ``COLUMN-inner1`` and so on.

    The videos of the split's training part are test videos in one fold and training videos in the others; all videos
    of a group are in the same fold. Groups are assigned by size, the largest first, each to the fold with the fewest
    videos. All other videos, the test videos included, are in no part.

    Raises:
        ManifestError: the column does not exist, an inner column exists already, a training video has no group, or
            there are fewer groups than folds.
    """
    columns = tuple(records[0].splits) if records else ()
    if column not in columns:
        raise ManifestError(f"split column {column!r} does not exist; there are: {', '.join(columns) or 'none'}")
    names = [inner_column(column, fold) for fold in range(1, folds + 1)]
    if existing := [name for name in names if name in columns]:
        raise ManifestError(f"split column {existing[0]!r} exists already; remove it from the manifest first")
    fold_of_group = _assign(records, column, folds)
    return tuple(
        replace(record, splits={**record.splits, **_parts(record, column, fold_of_group, names)}) for record in records
    )


def _assign(records: Sequence[VideoRecord], column: str, folds: int) -> dict[str, int]:
    """Return the fold of each group of the training part."""
    training = [record for record in records if record.splits[column] == TRAIN_PART]
    for record in training:
        if not record.group:
            raise ManifestError(f"{record.video_id}: has no group; videos of its scene could be in several folds")
    sizes = Counter(record.group for record in training)
    if len(sizes) < folds:
        raise ManifestError(
            f"split column {column!r}: {folds} folds, but only {len(sizes)} groups in its training part"
        )
    videos = [0] * folds
    fold_of_group = {}
    for group, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        fold = videos.index(min(videos))
        fold_of_group[group] = fold
        videos[fold] += size
    return fold_of_group


def _parts(record: VideoRecord, column: str, fold_of_group: dict[str, int], names: Sequence[str]) -> dict[str, str]:
    if record.splits[column] != TRAIN_PART:
        return dict.fromkeys(names, "")
    own = fold_of_group[record.group]
    return {name: TEST_PART if fold == own else TRAIN_PART for fold, name in enumerate(names)}
