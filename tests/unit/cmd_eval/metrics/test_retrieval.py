from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from cmd_eval.metrics.retrieval import NO_HIT, chance_recall, chance_recall_at, first_hits


def test_ranks_of_first_hits_match_a_loop() -> None:
    rng = np.random.default_rng(0)
    queries = rng.choice(list("abcz"), 30).tolist()
    gallery = rng.choice(list("abcd"), 40).tolist()
    rows = np.stack([rng.permutation(40)[:10] for _ in range(30)])
    expected = []
    for q in range(30):
        rank = NO_HIT
        for k in reversed(range(10)):
            if gallery[rows[q, k]] == queries[q]:
                rank = k + 1
        expected.append(rank)
    assert first_hits(rows, queries, gallery).tolist() == expected
    assert NO_HIT in expected


def test_chance_matches_the_enumeration_of_all_draws() -> None:
    gallery = ["a", "a", "b", "c", "c", "c"]
    for rank in (1, 2, 3, 6, 50):
        k = min(rank, 6)
        draws = list(combinations(gallery, k))
        expected = np.mean([sum(label in d for d in draws) / len(draws) for label in ("a", "b", "z")])
        assert chance_recall_at(["a", "b", "z"], gallery, rank) == pytest.approx(expected)


def test_chance_of_leave_one_out_excludes_the_query() -> None:
    labels = ["a", "a", "b", "b", "b"]
    for rank in (1, 2, 4, 50):
        shares = []
        for n, label in enumerate(labels):
            draws = list(combinations(labels[:n] + labels[n + 1 :], min(rank, 4)))
            shares.append(sum(label in d for d in draws) / len(draws))
        found = chance_recall(np.full(5, 4), np.array([1, 1, 2, 2, 2]), rank)
        assert found == pytest.approx(np.mean(shares))


def test_first_hits_of_three_queries() -> None:
    rows = np.array([[0, 1], [2, 0], [1, -1]])
    assert first_hits(rows, ["a", "a", "b"], ["a", "b", "c"]).tolist() == [1, 2, 1]
    assert first_hits(rows, ["c", "a", "a"], ["a", "b", "c"]).tolist() == [0, 2, 0], "-1 is no row"
    assert chance_recall_at(["a", "a", "b"], ["a", "b", "c"], 2) == pytest.approx(2 / 3)
    # One of two queries has nothing to be compared with.
    assert chance_recall(np.array([0, 4]), np.array([0, 2]), 1) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="query_labels"):
        first_hits(np.zeros((0, 3), np.int64), [], ["a"] * 9)
