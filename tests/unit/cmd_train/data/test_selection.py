"""Tests of the rule that chooses the split columns when the user names none."""

from __future__ import annotations

import pytest

from cmd_train.data.selection import resolve_split_columns


def test_given_columns_are_used_in_their_order_without_repetitions() -> None:
    assert resolve_split_columns(["split1", "split2", "split3"], ["split3", "split1", "split3"]) == ("split3", "split1")


def test_the_only_column_is_the_default() -> None:
    assert resolve_split_columns(["split"], []) == ("split",)


def test_no_columns_and_none_given_resolve_to_none() -> None:
    assert resolve_split_columns([], []) == ()


def test_several_columns_require_a_choice() -> None:
    with pytest.raises(ValueError, match=r"split1, split2.*--split-column.*--all-videos"):
        resolve_split_columns(["split1", "split2"], [])


@pytest.mark.parametrize(
    ("available", "message"),
    [(["split1", "split2"], "'split9'.*available: split1, split2"), ([], "'split9'.*no split columns")],
)
def test_an_unknown_column_is_rejected_with_the_available_ones(available: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_split_columns(available, ["split9"])
