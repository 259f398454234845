"""Classification metrics, compared with scikit-learn and loops."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference
from sklearn.metrics import accuracy_score, confusion_matrix, top_k_accuracy_score

from cmd_eval.metrics.classification import accuracy_record, most_likely, score_predictions, top_k_hits
from cmd_eval.metrics.retrieval import chance_recall_at

CLASSES = tuple("abcdefg")


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_hits_match_scikit_learn(k: int, ties: bool) -> None:
    rng = np.random.default_rng(k)
    score = rng.integers(0, 4, (60, 7)).astype(float) if ties else rng.standard_normal((60, 7))
    truth = rng.integers(0, 7, 60)
    expected = reference.top_k_accuracy_score(truth, score, k=k, labels=np.arange(7))
    assert top_k_hits(score, truth, k).mean() == pytest.approx(expected)
    if not ties:
        loop = [truth[n] in sorted(range(7), key=lambda c: -score[n, c])[:k] for n in range(60)]
        assert top_k_hits(score, truth, k).tolist() == loop


def test_top_k_over_all_classes_always_hits() -> None:
    assert top_k_hits(np.zeros((3, 2)), np.array([0, 1, 0]), 5).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_most_likely_class_agrees_with_top_1_under_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, truth = rng.integers(0, 3, (60, 7)).astype(float), rng.integers(0, 7, 60)
    score[:, 5:] = -np.inf
    assert ((most_likely(score) == truth) == top_k_hits(score, truth, 1)).all()
    assert (most_likely(score) != score.argmax(axis=1)).any(), "ties occur"


def test_class_with_minus_infinity_score_is_never_a_hit() -> None:
    score = np.array([[0.5, -np.inf, 0.2], [0.1, 0.2, -np.inf]])
    for k in (1, 2, 3, 5):
        assert top_k_hits(score, np.array([1, 2]), k).tolist() == [False, False]
    assert top_k_hits(score, np.array([0, 0]), 2).tolist() == [True, True]


def test_invalid_scores_and_classes_are_rejected() -> None:
    score, truth = np.zeros((3, 2)), np.array([0, 1, 1])
    with pytest.raises(ValueError, match="truth_N: class 2"):
        top_k_hits(score, np.array([0, 1, 2]), 1)
    with pytest.raises(ValueError, match="for 2 true"):
        top_k_hits(score, truth[:2], 1)
    with pytest.raises(ValueError, match="NaN"):
        top_k_hits(score * np.nan, truth, 1)
    with pytest.raises(ValueError, match="k: 0"):
        top_k_hits(score, truth, 0)


def test_confusion_and_per_class_accuracy_match_loops() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, 80), rng.integers(0, 6, 80)
    right = truth == predicted
    record = accuracy_record(tuple("abcdef"), truth, predicted, right, np.ones(80, bool), [""] * 80)
    expected = [[int(((truth == t) & (predicted == p)).sum()) for p in range(6)] for t in range(6)]
    assert record["confusion"] == expected
    for number, row in enumerate(record["per_class"][:5]):
        assert row["accuracy"] == pytest.approx(right[truth == number].mean())
        assert row["test"] == (truth == number).sum()
    assert record["per_class"][5] == {"class": "f", "test": 0, "accuracy": None, "low": None, "high": None}
    assert (record["top1"]["value"], record["top5"]["value"]) == (pytest.approx(right.mean()), 1.0)


def test_the_seed_is_that_of_all_intervals() -> None:
    rng = np.random.default_rng(0)
    truth, right, groups = np.arange(80) % 2, rng.random(80) < 0.6, [str(n // 8) for n in range(80)]
    one, again, other = (
        accuracy_record(("a", "b"), truth, truth, right, right, groups, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again
    assert all(one[name]["low"] != other[name]["low"] for name in ("top1", "top5"))
    assert one["per_class"][0] != other["per_class"][0]


def probabilities(videos: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), videos)


def test_figures_match_scikit_learn() -> None:
    probability = probabilities(60, 7)
    truth = np.random.default_rng(1).integers(7, size=60)
    result = score_predictions(probability, [CLASSES[n] for n in truth], CLASSES)
    record = result.as_json([""] * len(result.truth_N))
    predicted = probability.argmax(1)
    assert record["top1"]["value"] == pytest.approx(accuracy_score(truth, predicted))
    assert record["top5"]["value"] == pytest.approx(top_k_accuracy_score(truth, probability, k=5, labels=range(7)))
    assert record["top1"]["low"] < record["top1"]["value"] < record["top1"]["high"]
    expected = confusion_matrix(truth, predicted, labels=range(7))
    np.testing.assert_array_equal(record["confusion"], expected)
    assert record["chance"] is None, "the training set is unknown"
    np.testing.assert_array_equal(result.confidence_N, probability[np.arange(60), predicted])
    for number, row in enumerate(record["per_class"]):
        assert row["class"] == CLASSES[number]
        assert row["test"] == expected[number].sum()
        assert row["accuracy"] == pytest.approx(expected[number, number] / expected[number].sum())
        assert row["low"] <= row["accuracy"] <= row["high"]


def test_classes_unknown_to_the_classifier_count_as_wrong() -> None:
    probability = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.9, 0.05, 0.05]])
    result = score_predictions(probability, ["a", "zebra", "c", "yak"], ("a", "b", "c"))
    assert result.classes == ("a", "b", "c", "yak", "zebra")
    assert (result.known, result.unknown) == (3, 2)
    assert result.top1_N.tolist() == [True, False, True, False]
    assert result.top5_N.tolist() == [True, False, True, False], "even if there are fewer than five known classes"
    record = result.as_json([""] * len(result.truth_N))
    assert record["classes_unknown"] == ["yak", "zebra"]
    assert record["confusion"] == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert record["per_class"][1] == {"class": "b", "test": 0, "accuracy": None, "low": None, "high": None}


def test_chance_matches_the_probe() -> None:
    trained, tested = ["a", "a", "a", "b"], ["a", "b", "b", "zebra"]
    result = score_predictions(probabilities(4, 2), tested, ("a", "b"), [3, 1])
    assert result.chance == pytest.approx((3 / 4 + 1 / 4 + 1 / 4) / 4)
    assert result.chance == pytest.approx(chance_recall_at(tested, trained, 1))


def test_ties_are_broken_consistently() -> None:
    result = score_predictions(np.full((3, 3), 1 / 3), ["a", "b", "c"], ("a", "b", "c"))
    assert [result.classes[n] for n in result.predicted_N] == ["c"] * 3
    assert result.top1_N.tolist() == [False, False, True]


def test_inconsistent_sizes_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for 2 videos and 4 classes"):
        score_predictions(probabilities(2, 3), ["a", "b"], tuple("abcd"))
