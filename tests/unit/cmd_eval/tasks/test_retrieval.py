from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cmd_eval.data.leakage import check_leakage
from cmd_eval.data.splits import EvalSplitSpec, eval_splits, leave_one_out_split, part_split, split_notes
from cmd_eval.data.table import VideoTable
from cmd_eval.features.handcrafted import describe_motion
from cmd_eval.features.store import Features
from cmd_eval.results.files import write_result
from cmd_eval.results.schema import Provenance
from cmd_eval.results.tables import class_table, retrieval_table
from cmd_eval.tasks.retrieval import retrieve, spread_over_classes
from cmd_eval.tasks.run_retrieval import run_retrieval
from cmd_extract.schema import MotionGrid
from cmd_train.monitoring.neighbors import leave_one_out_recall, nearest_others


def table(rows: list[tuple[str, str, str]], prints: list[str] | None = None) -> VideoTable:
    """Videos given as (label, group, part)."""
    numbers = range(len(rows))
    return VideoTable(
        ids=tuple(f"v{n}" for n in numbers),
        labels=tuple(row[0] for row in rows),
        groups=tuple(row[1] for row in rows),
        fingerprints=tuple(prints or map(str, numbers)),
        splits={"split1": tuple(row[2] for row in rows)},
        frame_counts=tuple(9 for _ in numbers),
    )


def features_of(videos: VideoTable, mean_VF: NDArray[np.floating], name: str = "backbone, pooled") -> Features:
    source = Provenance(command="test", shards="shards", data_hash="d", features=name)
    return Features(videos=videos, mean_VF=mean_VF.astype(np.float32), provenance=source)


def random_set(seed: int = 0, videos: int = 40) -> tuple[VideoTable, NDArray[np.floating]]:
    rng = np.random.default_rng(seed)
    rows = [
        (str(rng.choice(list("xyz"))), str(rng.choice(list("gh"))), ["train", "test"][n % 3 == 0])
        for n in range(videos)
    ]
    return table(rows), rng.standard_normal((videos, 5))


@pytest.mark.parametrize("target", ["label", "group"])
def test_retrieval_matches_sorting_all_similarities(target: str) -> None:
    videos, mean = random_set()
    split = part_split(videos, "split1", "test", "train", target)
    result = retrieve(features_of(videos, mean), split)
    names = videos.names(target)
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    for place, query in enumerate(split.query):
        order = sorted(split.gallery, key=lambda row: -unit[row] @ unit[query])
        for k in (1, 5, 10, 20, 50):
            assert result.hits[k][place] == any(names[row] == names[query] for row in order[:k])
        assert result.neighbor_QM[place].tolist() == order
        assert result.nearest_to(place, 1)[0][1] == pytest.approx(unit[order[0]] @ unit[query], abs=1e-6)


def test_leave_one_out_compares_with_all_others() -> None:
    videos, mean = random_set(1)
    result = retrieve(features_of(videos, mean), leave_one_out_split(videos, "label"))
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    for query in range(len(videos)):
        order = sorted(set(range(len(videos))) - {query}, key=lambda row: -unit[row] @ unit[query])
        assert result.neighbor_QM[query].tolist() == order
    recall = leave_one_out_recall(torch.from_numpy(mean), videos.labels, (1, 5))
    assert {k: result.hits[k].mean() for k in (1, 5)} == pytest.approx(recall)
    record = result.as_json(videos)
    assert (record["split_column"], record["queries"], record["gallery"]) == ("leave-one-out", 40, 39)


def test_videos_with_a_unique_label_are_not_queries_in_leave_one_out() -> None:
    videos = table([("x", "", ""), ("x", "", ""), ("y", "", ""), ("", "", "")])
    whole = leave_one_out_split(videos, "label")
    result = retrieve(features_of(videos, np.eye(4)), whole)
    assert result.split.query.tolist() == [0, 1]
    assert "1 videos share their label with no other and are not queries" in split_notes(videos, whole)[-1]
    assert result.as_json(videos)["gallery"] == 2, "the gallery has y, but not the unlabeled video"
    lonely = table([("x", "", ""), ("y", "", "")])
    with pytest.raises(ValueError, match="no two videos"):
        retrieve(features_of(lonely, np.eye(2)), leave_one_out_split(lonely, "label"))


def test_a_row_is_never_its_own_neighbor_even_among_copies() -> None:
    similarity, rows = nearest_others(torch.ones(5, 2), 3)
    for row, others in enumerate(rows.tolist()):
        assert row not in others
        assert len(set(others)) == 3
    torch.testing.assert_close(similarity, torch.ones(5, 3))
    with pytest.raises(ValueError, match=r"between 1 and 4 \(other rows\)"):
        nearest_others(torch.ones(5, 2), 5)


def test_features_are_standardized_by_the_gallery_on_request() -> None:
    videos = table([("x", "", "train"), ("y", "", "train"), ("x", "", "test")])
    mean = np.array([[0.0, 5.0], [2.0, 5.0], [3.0, 6.0]])
    split = part_split(videos, "split1", "test", "train", "label")
    features = features_of(videos, mean)
    scaled = replace(features, provenance=replace(features.provenance, standardized=True))
    query, gallery = scaled.comparable(split.query, split.gallery)
    assert gallery.read().tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert query.read().tolist() == [[2.0, 1.0]]
    query, _ = features.comparable(split.query, split.gallery)
    assert query.read().tolist() == [[3.0, 6.0]]


def test_unlabeled_videos_and_empty_cells_are_left_out() -> None:
    rows = [("a", "g", "train"), ("", "g", "train"), ("a", "g", ""), ("a", "h", "test"), ("a", "g", "train")]
    videos = table(rows)
    split = part_split(videos, "split1", "test", "train", "label")
    assert (split.gallery.tolist(), split.query.tolist(), split.unlabeled) == ([0, 4], [3], 1)
    assert "1 videos without a label were left out" in split_notes(videos, split)[0]
    grouped = part_split(videos, "split1", "test", "train", "group")
    assert (grouped.gallery.tolist(), grouped.unlabeled) == ([0, 1, 4], 0)
    assert "the group of 1 of 1 queries is not in part 'train'" in split_notes(videos, grouped)[0]
    for column, part, words in (("split9", "test", "split9"), ("split1", "val", "'val'"), ("split1", "", "''")):
        with pytest.raises(ValueError, match=words):
            part_split(videos, column, part, "train", "label")


def test_the_same_video_or_file_on_both_sides_is_rejected() -> None:
    rows = [("a", "g", "train"), ("a", "g", "test")]
    check_leakage(table(rows), np.array([0]), np.array([1]))
    with pytest.raises(ValueError, match=r"query v1 and gallery video v0"):
        part_split(table(rows, ["same", "same"]), "split1", "test", "train", "label")
    with pytest.raises(ValueError, match=r"v0 is both a query and in the gallery"):
        part_split(table(rows), "split1", "train", "train", "label")
    with pytest.raises(ValueError, match=r"v0 and v1 are the same file"):
        leave_one_out_split(table(rows, ["same", "same"]), "label")


def test_a_group_in_both_parts_causes_a_warning() -> None:
    videos = table([("a", "g", "train"), ("a", "g", "test"), ("b", "h", "test"), ("b", "", "train"), ("b", "", "test")])
    notes = split_notes(videos, part_split(videos, "split1", "test", "train", "label"))
    assert len(notes) == 1
    assert "warning" in notes[0]
    assert "1 groups are in both parts (g), with 1 of 3 queries" in notes[0]
    assert not split_notes(videos, leave_one_out_split(videos, "label"))


def test_examples_are_spread_over_the_classes() -> None:
    labels = ["b", "a", "a", "b", "c"]
    assert spread_over_classes(labels, 3) == [1, 0, 4]
    assert spread_over_classes(labels, 4) == [1, 0, 4, 2]
    assert sorted(spread_over_classes(labels, 12)) == [0, 1, 2, 3, 4]
    many = [f"{n:03}" for n in range(100)]
    assert spread_over_classes(many, 3) == [0, 50, 99]


def test_run_over_several_splits(tmp_path: Path) -> None:
    videos, mean = random_set(2)
    shuffled = list(videos.splits["split1"])
    random.Random(0).shuffle(shuffled)
    two = VideoTable(**{**vars(videos), "splits": {**videos.splits, "split2": tuple(shuffled)}})
    spec = EvalSplitSpec(split_columns=("split1", "split2"), targets=("label", "group"))
    run = run_retrieval(features_of(two, mean), spec, "cmd-eval retrieval x")
    assert [(s["target"], s["split_column"]) for s in run.record["splits"]] == [
        ("label", "split1"), ("label", "split2"), ("group", "split1"), ("group", "split2")
    ]  # fmt: skip
    values = [split["recall"]["R@1"]["value"] for split in run.record["splits"][:2]]
    found = run.record["mean"][0]
    assert (found["target"], found["recall"]["R@1"]["splits"]) == ("label", 2)
    assert found["recall"]["R@1"]["value"] == pytest.approx(np.mean(values))
    assert found["recall"]["R@1"]["spread"] == pytest.approx(np.std(values, ddof=1))
    for split in run.record["splits"]:
        per_class = split["per_class"]
        assert sum(item["queries"] for item in per_class) == split["queries"]
        weighted = sum(item["queries"] * item["recall"]["R@5"]["value"] for item in per_class) / split["queries"]
        assert weighted == pytest.approx(split["recall"]["R@5"]["value"])
        figure = split["recall"]["R@1"]
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert all(len(example["neighbors"]) == 5 for example in split["examples"])
    text = retrieval_table(run.record)
    assert "mean of 2 splits by group" in text
    assert "chance" in text
    assert "\nx " in class_table(run.record)
    write_result(tmp_path / "r.json", run.record)


@pytest.mark.parametrize(
    "fields",
    [{"split_columns": ("a", "a")}, {"targets": ("label", "label")}, {"targets": ()}, {"targets": ("color",)}],
)
def test_invalid_specs_are_rejected(fields: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        EvalSplitSpec(**fields)  # type: ignore[arg-type] # deliberately invalid


def moving_square(dx: float, dy: float, frames: int = 24) -> MotionGrid:
    """A square of 4 x 4 cells that moves across a static picture of 20 x 30 cells of 8 pixels."""
    grid = np.zeros((frames, 2, 20, 30), np.int16)
    valid = np.ones((frames, 20, 30), bool)
    for t in range(frames):
        row, column = int(8 + dy * t / 8), int(13 + dx * t / 8)
        grid[t, :, row : row + 4, column : column + 4] = np.array([dx, dy])[:, None, None] * 4
    valid[::12] = False
    return MotionGrid(grid_quarter_px=grid * valid[:, None], valid=valid)


def test_motion_descriptor_gives_direction_over_time() -> None:
    described = describe_motion(moving_square(3.0, -1.5)).reshape(8, 2)
    np.testing.assert_allclose(described, [[3.0, -1.5]] * 8)
    there, back = moving_square(3.0, -1.5), moving_square(-3.0, 1.5)
    both = MotionGrid(
        grid_quarter_px=np.concatenate([there.grid_quarter_px, back.grid_quarter_px]),
        valid=np.concatenate([there.valid, back.valid]),
    )
    np.testing.assert_allclose(describe_motion(both).reshape(8, 2), [[3.0, -1.5]] * 4 + [[-3.0, 1.5]] * 4)
    assert not describe_motion(moving_square(0, 0)).any()


def test_motion_descriptor_is_invariant_to_camera_motion_and_place() -> None:
    still = moving_square(3.0, -1.5)
    grid = still.grid_quarter_px + np.array([20, -8], np.int16)[:, None, None]
    camera = MotionGrid(grid_quarter_px=grid * still.valid[:, None], valid=still.valid)
    np.testing.assert_allclose(describe_motion(camera), describe_motion(still))
    shifted = MotionGrid(
        grid_quarter_px=np.roll(still.grid_quarter_px, (2, -3), (2, 3)), valid=np.roll(still.valid, (2, -3), (1, 2))
    )
    np.testing.assert_allclose(describe_motion(shifted), describe_motion(still), atol=1e-12)


def test_motion_descriptor_of_a_video_with_fewer_frames_than_bins() -> None:
    assert describe_motion(moving_square(2.0, 0.0, frames=3)).shape == (16,)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("exclude", ["group", "source"])
def test_excluded_videos_are_no_neighbors(exclude: str, leave_one_out: bool) -> None:
    rng = np.random.default_rng(5)
    rows = [
        (str(rng.choice(list("xy"))), str(rng.choice(["", *"ghij"])), ["train", "test"][n % 3 == 0]) for n in range(60)
    ]
    # Segments of one file are in one part.
    files = [str(n // 6) + "ab"[n % 3 == 0] for n in range(60)]
    ids = tuple(f"{name}#{files[:n].count(name):04d}" for n, name in enumerate(files))
    videos = replace(table(rows), ids=ids, fingerprints=tuple(files))
    mean = rng.standard_normal((60, 5))
    (split,) = eval_splits(videos, EvalSplitSpec(leave_one_out=leave_one_out, exclude_same=exclude))
    result = retrieve(features_of(videos, mean), split)
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    keys = videos.units if exclude == "group" else videos.fingerprints
    chances = []
    for place, query in enumerate(result.split.query):
        others = [row for row in split.gallery if row != query and keys[row] != keys[query]]
        order = sorted(others, key=lambda row: -unit[row] @ unit[query])
        found = result.neighbor_QM[place]
        assert found[found >= 0].tolist() == order[: len(found)]
        ranks = [n for n, row in enumerate(order, start=1) if videos.labels[row] == videos.labels[query]]
        assert result.first_hit_Q[place] == (min(ranks) if ranks and min(ranks) <= len(found) else 0)
        chances.append(len(ranks) / len(order))
    assert result.chance[1] == pytest.approx(np.mean(chances))
    assert result.as_json(videos)["exclude_same"] == exclude
