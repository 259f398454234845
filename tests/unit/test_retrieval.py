from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
import torch

from eval.metrics import chance_recall_at, recall_at
from eval.motion_descriptor import describe_motion, standardise
from eval.retrieval import check_leakage, retrieve, select_labelled
from extract.schema import MotionGrid, VideoEntry


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
    labelled, left_out = select_labelled(entries, "split1", "train", ["label"])
    assert (sorted(e.row for e in labelled), left_out) == ([0, 4], 1)
    grouped, left_out = select_labelled(entries, "split1", "train", ["group"])
    assert (sorted(e.row for e in grouped), left_out) == ([0, 1, 4], 0)
    with pytest.raises(ValueError, match="split9"):
        select_labelled(entries, "split9", "train", ["label"])
    with pytest.raises(ValueError, match="'val'"):
        select_labelled(entries, "split1", "val", ["label"])


def test_the_same_file_on_both_sides_is_refused() -> None:
    check_leakage([entry(0)], [entry(1)])
    with pytest.raises(ValueError, match=r"v0 and gallery video v1"):
        check_leakage([entry(0, print_="same")], [entry(1, print_="same")])


def moving_square(dx: float, dy: float, frames: int = 24) -> MotionGrid:
    """A square of 4 x 4 cells that moves through a still picture of 20 x 30 cells of 8 pixels."""
    grid = np.zeros((frames, 2, 20, 30), np.int16)
    valid = np.ones((frames, 20, 30), bool)
    for t in range(frames):
        row, column = int(8 + dy * t / 8), int(13 + dx * t / 8)
        grid[t, :, row : row + 4, column : column + 4] = np.array([dx, dy])[:, None, None] * 4
    valid[::12] = False
    return MotionGrid(grid_quarter_px=grid * valid[:, None], valid=valid)


def test_descriptor_says_where_to_and_where() -> None:
    described = describe_motion(moving_square(3.0, -1.5)).reshape(12, 4)
    np.testing.assert_allclose(described[:, 0], 3.0)
    np.testing.assert_allclose(described[:, 1], -1.5)
    assert (np.diff(described[:, 2]) > -1e-9).all()
    assert described[-1, 2] - described[0, 2] == pytest.approx(22 * 3 / 8 / 30, abs=0.02)
    assert (np.diff(described[:, 3]) < 1e-9).all()
    assert described[0, 2] == pytest.approx(15 / 30, abs=0.02)
    np.testing.assert_allclose(describe_motion(moving_square(0, 0)).reshape(12, 4), [[0, 0, 0.5, 0.5]] * 12)


def test_descriptor_takes_videos_shorter_than_its_bins() -> None:
    assert describe_motion(moving_square(2.0, 0.0, frames=3)).shape == (48,)


def test_standardising_asks_the_gallery_only() -> None:
    gallery = torch.tensor([[0.0, 5.0], [2.0, 5.0]])
    query, scaled = standardise(torch.tensor([[3.0, 6.0]]), gallery)
    assert scaled.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert query.tolist() == [[2.0, 1.0]]
