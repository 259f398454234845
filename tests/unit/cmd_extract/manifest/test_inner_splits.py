from __future__ import annotations

import pytest

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.inner_splits import add_inner_splits
from cmd_extract.manifest.records import check_records
from cmd_extract.schema import VideoRecord


def records(groups: str, parts: str) -> list[VideoRecord]:
    """Return one video per letter, its group; ``parts`` has r for train, e for test and - for neither."""
    names = {"r": "train", "e": "test", "-": ""}
    return [
        VideoRecord(row=row, video_id=f"v{row}", path=f"{row}.mp4", group=group.strip(), splits={"split": names[part]})
        for row, (group, part) in enumerate(zip(groups, parts, strict=True))
    ]


def test_each_training_group_is_tested_once_and_test_videos_are_in_no_part() -> None:
    result = add_inner_splits(records("aabbbcdaz", "rrrrrrre-"), "split", 2)
    check_records(result)
    first, second = (["".join(r.splits[f"split-inner{k}"][:2] or "-") for r in result] for k in (1, 2))
    # b is the largest group and fills the first fold; a, then c, d to the smaller one.
    assert first == ["tr", "tr", "te", "te", "te", "tr", "te", "-", "-"]
    assert second == ["te", "te", "tr", "tr", "tr", "te", "tr", "-", "-"]
    assert [r.splits["split"] for r in result] == [r.splits["split"] for r in records("aabbbcdaz", "rrrrrrre-")]


@pytest.mark.parametrize(
    ("groups", "parts", "column", "message"),
    [
        ("ab", "rr", "split9", "'split9' does not exist; there are: split"),
        ("ab", "rr", "split", "3 folds, but only 2 groups"),
        ("abc ", "rrrr", "split", "v3: has no group"),
    ],
)
def test_invalid_input(groups: str, parts: str, column: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        add_inner_splits(records(groups, parts), column, 3)


def test_existing_inner_splits_are_kept() -> None:
    once = add_inner_splits(records("ab", "rr"), "split", 2)
    with pytest.raises(ManifestError, match="'split-inner1' exists already"):
        add_inner_splits(once, "split", 2)
