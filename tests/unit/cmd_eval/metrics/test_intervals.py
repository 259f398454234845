from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as reference

from cmd_eval.metrics.intervals import (
    Interval,
    bootstrap_interval,
    chance_recall_at,
    confusion_matrix,
    paired_bootstrap,
    per_class_accuracy,
    recall_hits,
    top_k_hits,
)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_hits_are_scikit_learns(k: int, ties: bool) -> None:
    rng = np.random.default_rng(k)
    score = rng.integers(0, 4, (60, 7)).astype(float) if ties else rng.standard_normal((60, 7))
    truth = rng.integers(0, 7, 60)
    expected = reference.top_k_accuracy_score(truth, score, k=k, labels=np.arange(7))
    assert top_k_hits(score, truth, k).mean() == pytest.approx(expected)
    if not ties:
        loop = [truth[n] in sorted(range(7), key=lambda c: -score[n, c])[:k] for n in range(60)]
        assert top_k_hits(score, truth, k).tolist() == loop


def test_top_k_of_all_classes_is_always_a_hit() -> None:
    assert top_k_hits(np.zeros((3, 2)), np.array([0, 1, 0]), 5).all()


def test_confusion_and_per_class_accuracy_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, 80), rng.integers(0, 6, 80)
    confusion = confusion_matrix(truth, predicted, 6)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, reference.confusion_matrix(truth, predicted, labels=np.arange(6)))
    expected = reference.recall_score(truth, predicted, labels=np.arange(5), average=None)
    np.testing.assert_allclose(per_class_accuracy(confusion)[:5], expected)
    assert np.isnan(per_class_accuracy(confusion)[5]), "no item of this class"


def test_bad_scores_and_classes_are_named() -> None:
    score, truth = np.zeros((3, 2)), np.array([0, 1, 1])
    with pytest.raises(ValueError, match="truth_N: class 2"):
        top_k_hits(score, np.array([0, 1, 2]), 1)
    with pytest.raises(ValueError, match="for 2 true"):
        top_k_hits(score, truth[:2], 1)
    with pytest.raises(ValueError, match="not a number"):
        top_k_hits(score * np.nan, truth, 1)
    with pytest.raises(ValueError, match="k: 0"):
        top_k_hits(score, truth, 0)
    with pytest.raises(ValueError, match="predicted_N: class -1"):
        confusion_matrix(truth, np.array([0, -1, 0]), 2)
    with pytest.raises(ValueError, match="predicted_N: 2 items"):
        confusion_matrix(truth, truth[:2], 2)


@pytest.mark.parametrize("items", [12, 150])
def test_bootstrap_agrees_with_scipy(items: int) -> None:
    hits = np.random.default_rng(items).random(items) < 0.8
    mine = bootstrap_interval(hits.astype(float), resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (hits.astype(float),), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert mine.value == pytest.approx(hits.mean())
    # Means of hits are multiples of 1 / items; two bootstraps may differ by one.
    assert mine.low == pytest.approx(theirs.low, abs=1.01 / items)
    assert mine.high == pytest.approx(theirs.high, abs=1.01 / items)


def test_bootstrap_is_a_loop_over_draws() -> None:
    values = np.random.default_rng(2).standard_normal(9)
    rng = np.random.default_rng(7)
    rows = rng.integers(9, size=(50, 9))
    means = [sum(values[row] for row in draw) / 9 for draw in rows]
    low, high = np.quantile(means, [0.05, 0.95])
    found = bootstrap_interval(values, seed=7, resamples=50, level=0.9)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found == bootstrap_interval(values, seed=7, resamples=50, level=0.9)
    assert found != bootstrap_interval(values, seed=8, resamples=50, level=0.9)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        found = bootstrap_interval((rng.random(100) < 0.7).astype(float), seed=trial, resamples=400)
        covered += found.low <= 0.7 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_one_kind_of_item_gives_an_interval_without_width() -> None:
    assert bootstrap_interval(np.ones(5)).as_json() == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert bootstrap_interval(np.array([0.25])) == Interval(value=0.25, low=0.25, high=0.25)


def test_pairs_are_kept_together() -> None:
    base = np.random.default_rng(4).random(40) * 10
    found = paired_bootstrap(base + 1, base)
    assert found.low == pytest.approx(1)
    assert found.high == pytest.approx(1)
    with pytest.raises(ValueError, match="pairs"):
        paired_bootstrap(base, base[:-1])


@pytest.mark.parametrize("arguments", [{"resamples": 0}, {"level": 1.0}])
def test_bootstrap_refuses_what_means_nothing(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        bootstrap_interval(np.ones(3), **arguments)  # type: ignore[arg-type] # wrong ones, too
    with pytest.raises(ValueError, match="at least one item"):
        bootstrap_interval(np.ones(0))


def test_hits_tell_which_queries_succeeded() -> None:
    rows = np.array([[0, 1], [2, 0], [1, 2]])
    hits = recall_hits(rows, ["a", "a", "b"], ["a", "b", "c"], 1)
    assert hits.tolist() == [True, False, True]
    assert recall_hits(rows, ["a", "a", "b"], ["a", "b", "c"], 2).all()
    assert chance_recall_at(["a", "a", "b"], ["a", "b", "c"], 2) == pytest.approx(2 / 3)


def test_a_class_that_cannot_be_told_is_never_a_hit() -> None:
    score = np.array([[0.5, -np.inf, 0.2], [0.1, 0.2, -np.inf]])
    for k in (1, 2, 3, 5):
        assert top_k_hits(score, np.array([1, 2]), k).tolist() == [False, False]
    assert top_k_hits(score, np.array([0, 0]), 2).tolist() == [True, True]
