from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cmd_eval.data.leakage import shared_videos, training_notes, training_sets
from cmd_eval.data.table import VideoTable
from cmd_eval.results.schema import Provenance
from cmd_eval.tasks.recognition import _without_copies, check_test_videos, labeled_part
from cmd_train.checkpoints.files import load_checkpoint, save_checkpoint
from cmd_train.checkpoints.initial import training_provenance
from cmd_train.config import build_config
from cmd_train.data.selection import select_videos
from tests.listed_videos import ListedVideos
from tests.unit.cmd_train.data.test_dataset import entries

# v4 is a copy of v0 under another name.
VIDEOS = VideoTable(
    ids=tuple(f"v{n}" for n in range(6)),
    labels=("x", "y", "x", "y", "x", ""),
    groups=("g", "g", "h", "i", "j", "h"),
    fingerprints=("0", "1", "2", "3", "0", "5"),
    splits={
        "split1": ("train", "train", "test", "test", "", "train"),
        "split2": ("test", "", "train", "train", "val", ""),
    },
    frame_counts=(9,) * 6,
)


def trained(column: str | None, *, part: str = "train", **changes: object) -> Provenance:
    settings = build_config("finetune-demo", {"data.split_column": column, "data.train_part": part}).as_dict()
    source = Provenance(command="", shards="", data_hash="d", features="", settings=settings, trained_on="d")
    return replace(source, **changes)  # type: ignore[arg-type] # of many types


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_copies_under_another_id_are_found() -> None:
    assert shared_videos(VIDEOS, rows(4, 2, 0), rows(0, 1)) == [(0, 0), (4, 0)]
    (note,) = training_notes(trained("split1"), VIDEOS, rows(2, 4), "split2", "queries")
    assert note == "warning: split2: the checkpoint was trained on 1 of the 2 queries"
    assert training_notes(trained("split1"), VIDEOS, rows(2, 3), "split1", "queries") == []
    assert training_notes(trained(None), VIDEOS, rows(2, 3), "split1", "queries")[0].endswith("2 of the 2 queries")


def test_training_data_of_initial_weights_counts() -> None:
    oldest = {
        "data_hash": "d",
        "split_column": "split2",
        "train_part": "train",
        "initial_weights": {"source": "published.pth"},
    }
    middle = {"data_hash": "e", "split_column": None, "train_part": "train", "initial_weights": {"trained_on": oldest}}
    given = trained("split1", initial_weights={"source": "x", "trained_on": middle})
    assert [(s.data_hash, s.split_column) for s in training_sets(given)] == [
        ("d", "split1"),
        ("e", None),
        ("d", "split2"),
        (None, None),
    ]
    assert training_notes(given, VIDEOS, rows(2, 3), "split1", "queries") == [
        "the checkpoint's initial weights were trained on other shards; whether these contain queries is unknown",
        "warning: split1: the checkpoint's initial weights were trained on 2 of the 2 queries",
    ]
    assert training_sets(replace(given, untrained=True)) == []
    assert training_sets(replace(given, settings=None)) == []


def test_initial_weights_record_their_own_initial_weights(tmp_path) -> None:
    before = {"source": "old", "trained_on": {"data_hash": "a"}}
    config = {"settings": build_config("demo").as_dict(), "data_hash": "b", "init": before}
    save_checkpoint(tmp_path, step=1, weights={}, state={}, config=config)
    assert training_provenance(load_checkpoint(tmp_path)) == {
        "data_hash": "b",
        "split_column": None,
        "train_part": "train",
        "initial_weights": before,
    }


def test_a_classifier_is_not_tested_on_its_training_videos_in_any_split() -> None:
    # v0 is a test video of split2 and a training video of split1, which the checkpoint was trained on.
    with pytest.raises(ValueError, match="trained on 1 of the 1 test videos, for example v0"):
        check_test_videos(VIDEOS, labeled_part(VIDEOS, "split2", "test"), trained("split1"))
    with pytest.raises(ValueError, match="test video v4 and training video v0 are the same file"):
        check_test_videos(VIDEOS, labeled_part(VIDEOS, "split2", "val"), trained("split1"))
    with pytest.raises(ValueError, match="trained on 2 of the 2 test videos"):
        check_test_videos(VIDEOS, labeled_part(VIDEOS, "split1", "train"), trained("split1"))
    with pytest.raises(ValueError, match="trained on 2 of the 2 test videos"):
        check_test_videos(VIDEOS, labeled_part(VIDEOS, "split1", "test"), trained(None))
    # v5 has no label, so the classifier was not trained on it, and its group does not count.
    assert check_test_videos(VIDEOS, labeled_part(VIDEOS, "split1", "test"), trained("split1")) == []
    (note,) = check_test_videos(VIDEOS, rows(2), trained("split1", trained_on="other"))
    assert "other shards; whether these contain test videos is unknown" in note


def test_the_training_videos_of_relabeled_shards_are_known_if_all_were_used() -> None:
    shards, other = "c" * 32, "e" * 32
    now = {"data_hash": "a" * 32 + shards, "trained_on": "b" * 32 + shards}
    tested = labeled_part(VIDEOS, "split1", "test")
    with pytest.raises(ValueError, match="trained on 2 of the 2 test videos"):
        check_test_videos(VIDEOS, tested, trained(None, **now), len(VIDEOS))
    # Not if some had no label then: they may be the test videos.
    (note,) = check_test_videos(VIDEOS, tested, trained(None, **now), len(VIDEOS) - 2)
    assert note.startswith("the checkpoint was trained on the videos with a label before the shards were relabeled;")
    (note,) = training_notes(trained(None, **now), VIDEOS, tested, "split1", "queries")
    assert note.endswith("trained on 2 of the 2 queries"), "pre-training uses all videos"
    (note,) = training_notes(trained("split1", **now), VIDEOS, rows(2), "split1", "queries")
    assert note.startswith("the checkpoint was trained on part 'train' of split1 before the shards were relabeled;")
    before = {"data_hash": now["trained_on"], "split_column": None, "train_part": "train"}
    given = trained(
        "split1", data_hash=now["data_hash"], trained_on=now["data_hash"], initial_weights={"trained_on": before}
    )
    (note,) = training_notes(given, VIDEOS, rows(2, 3), "split1", "queries")
    assert note == "warning: split1: the checkpoint's initial weights were trained on 2 of the 2 queries"
    (note,) = training_notes(
        trained(None, **now | {"trained_on": "a" * 32 + other}), VIDEOS, rows(2), "split1", "queries"
    )
    assert "other shards" in note


def test_videos_without_a_label_do_not_count_for_a_classifier() -> None:
    """v2, a test video of split1, is here a copy of v5, which has no label and was left out of fine-tuning."""
    videos = replace(VIDEOS, fingerprints=("0", "1", "2", "3", "0", "2"))
    tested = labeled_part(videos, "split1", "test")
    assert check_test_videos(videos, tested, trained("split1")) == []
    assert _without_copies(videos, tested, trained("split1")).tolist() == [2, 3]
    # Pre-training uses all videos.
    (note,) = training_notes(trained("split1"), videos, tested, "split1", "queries")
    assert note.endswith("trained on 1 of the 2 queries")


def test_groups_of_the_training_videos_cause_a_warning() -> None:
    (note,) = check_test_videos(VIDEOS, rows(1), trained("split2", part="test"))
    assert "1 groups are in both parts (g), with 1 of 1 test videos" in note


def test_an_empty_part_is_rejected() -> None:
    videos = ListedVideos([replace(entry, splits={"split1": ""}) for entry in entries()])
    with pytest.raises(ValueError, match="part: must not be empty; name a part of split1"):
        select_videos(videos, "split1", "")
