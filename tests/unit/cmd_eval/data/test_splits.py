from __future__ import annotations

from dataclasses import replace

import pytest

from cmd_eval.data.splits import (
    ALL_VIDEOS,
    EvalSplitSpec,
    choose_split_columns,
    eval_splits,
    gallery_counts,
    split_notes,
)
from cmd_eval.data.table import VideoTable


def videos(*columns: str) -> VideoTable:
    return VideoTable(
        ids=("a", "b", "c", "d"),
        labels=("x", "x", "y", "y"),
        groups=("", "", "", ""),
        fingerprints=("1", "2", "3", "4"),
        splits=dict.fromkeys(columns, ("train", "test", "train", "test")),
        frame_counts=(9, 9, 9, 9),
    )


def test_the_only_split_column_is_the_default() -> None:
    assert choose_split_columns(videos("split"), ()) == ("split",)
    assert [split.split_column for split in eval_splits(videos("split"), EvalSplitSpec())] == ["split"]


def test_with_several_split_columns_one_must_be_chosen() -> None:
    several = r"2 split columns \(one, two\); choose one with --split-column, or repeat it to use several$"
    with pytest.raises(ValueError, match=several):
        eval_splits(videos("one", "two"), EvalSplitSpec())
    with pytest.raises(ValueError, match=r"--split-column, or use all videos with --leave-one-out$"):
        choose_split_columns(videos("one", "two"), (), alternative=ALL_VIDEOS)
    assert choose_split_columns(videos("one", "two"), ["two", "one"]) == ("two", "one")
    with pytest.raises(ValueError, match="'three' is not in the shards; available: one, two"):
        choose_split_columns(videos("one", "two"), ["three"])


def test_without_split_columns_leave_one_out_is_suggested_where_it_exists() -> None:
    with pytest.raises(ValueError, match=r"no split columns; use all videos with --leave-one-out, or add one"):
        choose_split_columns(videos(), (), alternative=ALL_VIDEOS)
    with pytest.raises(ValueError, match=r"no split columns; add one to the manifest \(`cmd-extract relabel`\)$"):
        eval_splits(videos(), EvalSplitSpec())
    assert [split.leave_one_out for split in eval_splits(videos(), EvalSplitSpec(leave_one_out=True))] == [True]


def test_copies_of_gallery_files_are_left_out_and_counted_on_request() -> None:
    table = replace(videos("split"), fingerprints=("1", "1", "3", "4"))
    with pytest.raises(ValueError, match=r"query b and gallery video a are the same file.*--skip-copies"):
        eval_splits(table, EvalSplitSpec())
    (split,) = eval_splits(table, EvalSplitSpec(skip_copies=True))
    assert (split.query.tolist(), split.gallery.tolist(), split.copies) == ([3], [0, 2], 1)
    assert "split: 1 queries were left out as copies of files in part 'train'" in split_notes(table, split)
    with pytest.raises(ValueError, match="all 2 tested videos are copies of training videos"):
        eval_splits(replace(table, fingerprints=("1", "1", "3", "3")), EvalSplitSpec(skip_copies=True))
    with pytest.raises(ValueError, match="both a query and in the gallery"):
        eval_splits(table, EvalSplitSpec(skip_copies=True, test_part="train"))


def test_leave_one_out_keeps_the_first_of_several_copies_on_request() -> None:
    table = replace(videos(), fingerprints=("1", "2", "1", "1"))
    with pytest.raises(ValueError, match="videos a and c are the same file"):
        eval_splits(table, EvalSplitSpec(leave_one_out=True))
    (split,) = eval_splits(table, EvalSplitSpec(leave_one_out=True, skip_copies=True))
    assert (split.query.tolist(), split.gallery.tolist(), split.copies, split.unlabeled) == ([0, 1], [0, 1], 2, 0)
    assert "leave-one-out: 2 queries were left out as copies of earlier videos" in split_notes(table, split)


def segments() -> VideoTable:
    """Two files cut into two segments each, and a whole video; ``a`` and ``b`` share a group."""
    return VideoTable(
        ids=("a#0000", "a#0001", "b#0000", "b#0001", "c"),
        labels=("x", "x", "x", "y", "y"),
        groups=("g", "g", "g", "g", ""),
        fingerprints=("1", "1", "2", "2", "3"),
        splits={"split": ("test", "test", "train", "train", "train")},
        frame_counts=(9,) * 5,
    )


def test_segments_of_one_file_count_as_one_source() -> None:
    (split,) = eval_splits(segments(), EvalSplitSpec(leave_one_out=True))
    assert (split.query.tolist(), split.exclude_same) == ([0, 1, 2, 3, 4], "source")
    sizes, matches = gallery_counts(segments(), split)
    assert (sizes.tolist(), matches.tolist()) == ([3, 3, 3, 3, 4], [1, 1, 2, 1, 1])
    assert "leave-one-out: gallery videos of the query's source are excluded (segments of one file)" in split_notes(
        segments(), split
    )
    # A copy under another id is still refused, or left out.
    copied = replace(segments(), fingerprints=("1", "1", "2", "2", "1"))
    with pytest.raises(ValueError, match="videos a#0000 and c are the same file"):
        eval_splits(copied, EvalSplitSpec(leave_one_out=True))
    (kept,) = eval_splits(copied, EvalSplitSpec(leave_one_out=True, skip_copies=True))
    assert (kept.query.tolist(), kept.copies) == ([0, 1, 2, 3], 1)
    # Without groups, the segments of a file are one unit of intervals and folds.
    assert replace(segments(), groups=("",) * 5).units == ("1", "1", "2", "2", "")
    assert segments().units == ("g", "g", "g", "g", "")


def test_videos_of_the_same_group_are_excluded_on_request() -> None:
    spec = EvalSplitSpec(split_columns=("split",), exclude_same="group")
    (split,) = eval_splits(segments(), spec)
    assert [counts.tolist() for counts in gallery_counts(segments(), split)] == [[1, 1], [0, 0]]
    expected = "split: 2 of 2 queries share their label with no gallery video outside of their group and count as wrong"
    assert expected in split_notes(segments(), split)
    assert spec.name == "split-label-without-same-group"
    for change, message in (
        ({"targets": ("label", "group")}, "retrieval by group has no hits"),
        ({"exclude_same": "color"}, "'color' is not one of group, source"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(spec, **change)
    with pytest.raises(ValueError, match="no video has a group; add a group column"):
        eval_splits(videos("split"), spec)
