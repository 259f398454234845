from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
import torch

from eval.metrics import chance_recall_at, recall_at
from eval.retrieval import check_leakage, retrieve, select_part
from extract.schema import VideoEntry


def entry(number: int, *, label: str = "a", group: str = "g", part: str = "train", print_: str = "") -> VideoEntry:
    return VideoEntry(
        row=number, video_id=f"v{number}", label=label, group=group, splits={"split1": part}, frame_count=9, fps=25.0,
        source_width=4, source_height=4, codec="h264", fingerprint=print_ or str(number), keyframe_indices=(0,),
        shard=0, position=number,
    )  # fmt: skip


def test_recall_matches_a_loop() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.choice(list("abc"), 30).tolist()
    offered = rng.choice(list("abcd"), 40).tolist()
    rows = np.stack([rng.permutation(40)[:10] for _ in range(30)])
    for rank in (1, 5, 10):
        hits = 0
        for q in range(30):
            hits += any(offered[rows[q, k]] == wanted[q] for k in range(rank))
        assert recall_at(rows, wanted, offered, rank) == pytest.approx(hits / 30)


def test_chance_is_the_share_of_all_draws() -> None:
    offered = ["a", "a", "b", "c", "c", "c"]
    for rank in (1, 2, 3, 6, 50):
        k = min(rank, 6)
        draws = list(combinations(offered, k))
        expected = np.mean([sum(label in d for d in draws) / len(draws) for label in ("a", "b", "z")])
        assert chance_recall_at(["a", "b", "z"], offered, rank) == pytest.approx(expected)


def test_recall_refuses_too_few_neighbours() -> None:
    with pytest.raises(ValueError, match="need 5"):
        recall_at(np.zeros((1, 3), np.int64), ["a"], ["a"] * 9, 5)
    with pytest.raises(ValueError, match="query_labels"):
        recall_at(np.zeros((0, 3), np.int64), [], ["a"] * 9, 1)


def test_retrieval_finds_what_lies_near() -> None:
    torch.manual_seed(0)
    centres = {"x": torch.tensor([1.0, 0, 0]), "y": torch.tensor([0, 1.0, 0])}
    gallery = [entry(i, label="xy"[i % 2], group=str(i % 3)) for i in range(12)]
    queries = [entry(20 + i, label="xy"[i % 2], group="1") for i in range(4)]
    features = [torch.stack([centres[e.label] for e in part]) + 0.01 * torch.randn(len(part), 3) for part in
                (queries, gallery)]  # fmt: skip
    result = retrieve(*features, queries, gallery, "label")
    assert result.recall[1] == 1.0
    assert result.chance[1] == pytest.approx(0.5)
    assert result.recall[50] == 1.0, "a k above the gallery's size counts all of it"
    assert retrieve(*features, queries, gallery, "group").recall[1] < 1.0


def test_unlabelled_videos_and_empty_cells_take_no_part() -> None:
    entries = [entry(0), entry(1, label=""), entry(2, part=""), entry(3, part="test"), entry(4)]
    random.Random(0).shuffle(entries)
    assert sorted(entries[i].row for i in select_part(entries, "split1", "train", ["label"])) == [0, 4]
    assert sorted(entries[i].row for i in select_part(entries, "split1", "train", ["group"])) == [0, 1, 4]
    with pytest.raises(ValueError, match="split9"):
        select_part(entries, "split9", "train", ["label"])
    with pytest.raises(ValueError, match="'val'"):
        select_part(entries, "split1", "val", ["label"])


def test_the_same_file_on_both_sides_is_refused() -> None:
    check_leakage([entry(0)], [entry(1)])
    with pytest.raises(ValueError, match=r"v0 and gallery video v1"):
        check_leakage([entry(0, print_="same")], [entry(1, print_="same")])
