from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from cmd_eval.metrics.retrieval import chance_recall_at, recall_hits


def test_recall_matches_a_loop() -> None:
    rng = np.random.default_rng(0)
    queries = rng.choice(list("abc"), 30).tolist()
    gallery = rng.choice(list("abcd"), 40).tolist()
    rows = np.stack([rng.permutation(40)[:10] for _ in range(30)])
    for rank in (1, 5, 10):
        hits = 0
        for q in range(30):
            hits += any(gallery[rows[q, k]] == queries[q] for k in range(rank))
        assert recall_hits(rows, queries, gallery, rank).mean() == pytest.approx(hits / 30)


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
        assert chance_recall_at(labels, labels, rank, leave_one_out=True) == pytest.approx(np.mean(shares))


def test_too_few_neighbors_are_rejected() -> None:
    with pytest.raises(ValueError, match="need 5"):
        recall_hits(np.zeros((1, 3), np.int64), ["a"], ["a"] * 9, 5)
    with pytest.raises(ValueError, match="query_labels"):
        recall_hits(np.zeros((0, 3), np.int64), [], ["a"] * 9, 1)


def test_recall_hits_of_three_queries() -> None:
    rows = np.array([[0, 1], [2, 0], [1, 2]])
    hits = recall_hits(rows, ["a", "a", "b"], ["a", "b", "c"], 1)
    assert hits.tolist() == [True, False, True]
    assert recall_hits(rows, ["a", "a", "b"], ["a", "b", "c"], 2).all()
    assert chance_recall_at(["a", "a", "b"], ["a", "b", "c"], 2) == pytest.approx(2 / 3)
