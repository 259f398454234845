"""Selection of the training videos."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cmd_train.config import build_config
from cmd_train.engine.setup import select_training_videos
from tests.listed_videos import ListedVideos
from tests.unit.cmd_train.data.test_dataset import entries


def videos(*columns: str) -> ListedVideos:
    """Videos whose parts alternate between train and test in the given split columns."""
    parts = ("train", "test")
    return ListedVideos([
        replace(entry, splits=dict.fromkeys(columns, parts[number % 2])) for number, entry in enumerate(entries())
    ])  # fmt: skip


def test_only_split_column_is_used() -> None:
    given = videos("split1")
    chosen = select_training_videos(given, build_config("demo"))
    assert chosen.entries == given[::2]
    assert (chosen.config.data.split_column, chosen.config.data.all_videos) == ("split1", False)
    assert chosen.description == (
        f"Training on part 'train' of split column 'split1': {len(given[::2])} of {len(given)} videos"
    )
    assert select_training_videos(given, chosen.config) == chosen, "the resolved configuration selects the same"
    explicit = select_training_videos(given, build_config("demo", {"data.split_column": "split1"}))
    assert explicit == chosen
    other = select_training_videos(given, build_config("demo", {"data.train_part": "test"}))
    assert other.entries == given[1::2]


def test_several_split_columns_must_be_chosen_from() -> None:
    given = videos("split1", "split2")
    with pytest.raises(ValueError, match=r"split1, split2.*--split-column.*--all-videos"):
        select_training_videos(given, build_config("demo"))
    chosen = select_training_videos(given, build_config("demo", {"data.split_column": "split2"}))
    assert chosen.config.data.split_column == "split2"
    with pytest.raises(ValueError, match=r"'split3' is not in the shards; available: split1, split2"):
        select_training_videos(given, build_config("demo", {"data.split_column": "split3"}))


def test_all_videos_are_used_without_split_columns() -> None:
    chosen = select_training_videos(videos(), build_config("demo"))
    assert chosen.entries == videos()
    assert (chosen.config.data.split_column, chosen.config.data.all_videos) == (None, True)
    assert chosen.description == f"Training on all {len(videos())} videos (the shards have no split columns)"
    with pytest.raises(ValueError, match=r"data\.train_part: cannot select part 'val', the shards have no split"):
        select_training_videos(videos(), build_config("demo", {"data.train_part": "val"}))


def test_all_videos_ignore_the_splits() -> None:
    given = videos("split1", "split2")
    chosen = select_training_videos(given, build_config("demo", {"data.all_videos": True}))
    assert chosen.entries == given
    assert chosen.config == build_config("demo", {"data.all_videos": True})
    assert chosen.description == f"Training on all {len(given)} videos (--all-videos)"
    without_splits = select_training_videos(videos(), build_config("demo", {"data.all_videos": True}))
    assert without_splits.config == select_training_videos(videos(), build_config("demo")).config
