from __future__ import annotations

import pytest

from cmd_eval.data.splits import EvalSplitSpec, choose_split_columns, eval_splits
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
    with pytest.raises(
        ValueError, match=r"2 split columns \(one, two\); choose one with --split-column, or .*leave-one"
    ):
        eval_splits(videos("one", "two"), EvalSplitSpec())
    assert choose_split_columns(videos("one", "two"), ["two", "one"]) == ("two", "one")
    with pytest.raises(ValueError, match="'three' is not in the shards; available: one, two"):
        choose_split_columns(videos("one", "two"), ["three"])


def test_without_split_columns_leave_one_out_is_suggested() -> None:
    with pytest.raises(ValueError, match=r"no split columns; .*--leave-one-out"):
        eval_splits(videos(), EvalSplitSpec())
    assert [split.leave_one_out for split in eval_splits(videos(), EvalSplitSpec(leave_one_out=True))] == [True]
