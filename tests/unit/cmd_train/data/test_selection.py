"""Choice of the split columns, and of the videos in one part of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cmd_train.data.selection import resolve_split_columns, select_videos
from tests.listed_videos import ListedVideos
from tests.unit.cmd_train.data.test_dataset import entries


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


def test_one_part_of_a_split_is_selected_in_order() -> None:
    (video, *_) = entries()
    videos = ListedVideos([
        replace(video, video_id=name, splits={"split1": part, "split2": "test"})
        for name, part in (("a", "train"), ("b", "test"), ("c", ""), ("d", "train"))
    ])  # fmt: skip
    assert select_videos(videos, None, "train") == videos
    assert list(select_videos(videos, "split1", "train")) == [videos[0], videos[3]]
    with pytest.raises(ValueError, match="part: must not be empty"):
        select_videos(videos, "split1", "")
    with pytest.raises(ValueError, match=r"part: 'val' of split column 'split1' .* parts with videos: test, train"):
        select_videos(videos, "split1", "val")
    with pytest.raises(ValueError, match="'split9' is not in the shards; available: split1, split2"):
        select_videos(videos, "split9", "train")
