from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.special
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cmd_eval.data.splits import EvalSplit, EvalSplitSpec, part_split
from cmd_eval.data.table import VideoTable
from cmd_eval.features.store import Features
from cmd_eval.results.schema import Provenance
from cmd_eval.results.tables import confusion_table, probe_table
from cmd_eval.tasks import probe as probes
from cmd_eval.tasks.probe import LogisticProbe, NeighborProbe, cross_validate, make_probe
from cmd_eval.tasks.run_probe import fold_splits, probe, run_probe
from cmd_train.monitoring.neighbors import nearest


def make(labels: list[str], groups: list[str], parts: list[str], mean_VF: NDArray[np.floating]) -> Features:
    videos = VideoTable(
        ids=tuple(f"v{n}" for n in range(len(labels))),
        labels=tuple(labels),
        groups=tuple(groups),
        fingerprints=tuple(map(str, range(len(labels)))),
        splits={"split1": tuple(parts)},
        frame_counts=tuple(9 for _ in labels),
    )
    source = Provenance(command="test", shards="shards", data_hash="d", features="backbone, pooled")
    return Features(videos=videos, mean_VF=mean_VF.astype(np.float32), provenance=source)


def clusters(seed: int = 0, videos: int = 120, noise: float = 1.5) -> Features:
    """Four classes in 6 features, and 5 groups that are independent of the class."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 4, videos)
    centers = rng.standard_normal((4, 6)) * 2
    mean = centers[numbers] + noise * rng.standard_normal((videos, 6))
    groups = [f"g{n % 5}" for n in range(videos)]
    parts = ["test" if n % 5 == 4 else "train" for n in range(videos)]
    return make([f"c{n}" for n in numbers], groups, parts, mean)


def parts(features: Features) -> tuple[EvalSplit, NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """The split with the features and class numbers of its training videos, and the features of its test videos."""
    split = part_split(features.videos, "split1", "test", "train", "label")
    numbers = np.array([int(features.videos.labels[row][1]) for row in split.gallery])
    return split, features.mean_VF[split.gallery], numbers, features.mean_VF[split.query]


@pytest.mark.parametrize("C", [0.01, 1.0])
def test_logistic_probe_matches_scikit_learn_on_standardized_features(C: float) -> None:
    _, train, numbers, test = parts(clusters())
    probe = LogisticProbe(C).fit(train, numbers)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000)).fit(train.astype(float), numbers)
    expected = model.predict_log_proba(test.astype(float))
    np.testing.assert_allclose(scipy.special.log_softmax(probe.decision_function(test), axis=1), expected, atol=1e-6)
    np.testing.assert_array_equal(probe.predict(test), model.predict(test.astype(float)))


@pytest.mark.parametrize("method", ["logistic", "knn"])
def test_one_class_is_always_predicted(method: str) -> None:
    probe = make_probe(method).fit(np.eye(3, dtype=np.float32), np.full(3, 7))
    assert probe.predict(np.ones((2, 3), np.float32)).tolist() == [7, 7]
    assert probe.decision_function(np.ones((2, 3), np.float32)).shape == (2, 1)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_votes_of_neighbors_match_scikit_learn(k: int) -> None:
    _, train, numbers, test = parts(clusters(1))
    found = NeighborProbe(k).fit(train, numbers).decision_function(test)
    votes = KNeighborsClassifier(k, metric="cosine").fit(train, numbers).predict_proba(test) * k
    np.testing.assert_allclose(found.round(), votes.round())
    unit_train, unit_test = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test))
    nearest = np.stack([(unit_test @ unit_train[numbers == number].T).max(axis=1) for number in range(4)], axis=1)
    for n in range(len(test)):
        expected = sorted(range(4), key=lambda c: (-votes[n, c].round(), -nearest[n, c]))
        assert np.argsort(-found[n]).tolist() == expected, "ties are ranked by the nearest video"
    np.testing.assert_array_equal(NeighborProbe(k).fit(train, numbers).predict(test), found.argmax(axis=1))


def test_scaled_neighbors_are_those_of_standardized_features() -> None:
    _, train, numbers, test = parts(clusters(1))
    scaler = StandardScaler().fit(train.astype(float))
    scaled_train, scaled_test = (scaler.transform(rows.astype(float)).astype(np.float32) for rows in (train, test))
    expected = NeighborProbe(3).fit(scaled_train, numbers).decision_function(scaled_test)
    found = NeighborProbe(3, scale=True).fit(train * 9, numbers).decision_function(test * 9)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_parameter_is_chosen_without_the_test_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clusters(2)
    split, train, _, _ = parts(features)
    result = probe(features, split, "logistic")
    # Other features of the test videos lead to the same choice.
    changed = features.mean_VF.copy()
    changed[split.query] = 1e3
    videos = features.videos
    again = probe(
        make(list(videos.labels), list(videos.groups), list(videos.splits["split1"]), changed), split, "logistic"
    )
    assert again.validation == result.validation
    row_of = {feature.tobytes(): int(row) for row, feature in zip(split.gallery, train, strict=True)}
    folds: list[tuple[set[int], set[int]]] = []

    class Recording(NeighborProbe):
        def fit(self, feature_TF, number_T):  # type: ignore[no-untyped-def] # as in the base class
            self.kept = {row_of[feature.tobytes()] for feature in feature_TF}
            return super().fit(feature_TF, number_T)

        def predict_each(self, feature_NF, values):  # type: ignore[no-untyped-def] # as in the base class
            folds.append((self.kept, {row_of[feature.tobytes()] for feature in feature_NF}))
            return super().predict_each(feature_NF, values)

    monkeypatch.setattr(probes, "NeighborProbe", Recording)
    probe(features, split, "knn")
    assert len({tuple(sorted(left_out)) for _, left_out in folds}) == 4, "the training part has four groups"
    for kept, left_out in folds:
        assert kept | left_out == set(split.gallery.tolist())
        assert not {videos.groups[row] for row in kept} & {videos.groups[row] for row in left_out}


def test_cross_validation_matches_a_loop_over_groups() -> None:
    features = clusters(3, noise=3.0)
    groups = np.array(features.videos.groups[:100])
    train, numbers = features.mean_VF[:100], np.array([int(name[1]) for name in features.videos.labels[:100]])
    found = cross_validate("knn", make_probe("knn"), train, numbers, list(groups))
    assert (found.folds, found.grouped) == (5, True)
    for k, accuracy in found.accuracy.items():
        right = 0
        for group in set(groups):
            inside = groups == group
            model = NeighborProbe(int(k)).fit(train[~inside], numbers[~inside])
            right += (model.predict(train[inside]) == numbers[inside]).sum()
        assert accuracy == pytest.approx(right / 100)
    assert found.best == max(found.accuracy, key=lambda k: (found.accuracy[k], -k))


def test_neighbors_are_ranked_once_per_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    features, ranked = clusters(3), list[int]()

    def counting(query, gallery, count):  # type: ignore[no-untyped-def] # as in the original
        ranked.append(count)
        return nearest(query, gallery, count)

    monkeypatch.setattr(probes, "nearest", counting)
    found = cross_validate("knn", make_probe("knn"), features.mean_VF, np.arange(120) % 4)
    assert ranked == [50] * found.folds
    assert list(found.accuracy) == [1, 3, 5, 10, 20, 50]


def test_without_groups_the_folds_are_stratified() -> None:
    features = clusters(4)
    train, numbers = features.mean_VF[:100], np.array([int(name[1]) for name in features.videos.labels[:100]])
    for groups in (None, [""] * 100, ["one"] * 100):
        found = cross_validate("logistic", make_probe("logistic"), train, numbers, groups)
        assert (found.folds, found.grouped) == (5, False)
    # Among videos with a group, those without one are independent.
    mixed = ["a"] * 50 + ["b"] * 40 + [""] * 10
    assert cross_validate("knn", make_probe("knn"), train, numbers, mixed).grouped
    with pytest.raises(ValueError, match="none of the classes of the 4 training videos has two videos"):
        cross_validate("knn", make_probe("knn"), train[:4], np.arange(4))


@pytest.mark.parametrize("method", ["logistic", "knn"])
def test_probe_learns_separable_classes_but_not_noise(method: str) -> None:
    separable = clusters(5, noise=0.3)
    record = run_probe(separable, EvalSplitSpec(targets=("label",)), method, "cmd-eval probe x")
    split = record["splits"][0]
    assert split["top1"]["value"] == 1.0
    assert split["classes"] == ["c0", "c1", "c2", "c3"]
    assert np.trace(split["confusion"]) == split["test"] == 24
    assert sum(item["test"] for item in split["per_class"]) == 24
    assert set(split["chosen"]) == {"C" if method == "logistic" else "k"}
    assert 0.2 < split["chance"] < 0.3
    assert (split["train_part"], split["test_part"]) == ("train", "test")
    assert record["mean"][0]["top1"] == {"value": 1.0, "spread": None, "splits": 1}
    assert "top-1" in probe_table(record)
    assert "3 c3" in confusion_table(record)
    rng = np.random.default_rng(6)
    noise = make(list(separable.videos.labels), list(separable.videos.groups), list(separable.videos.splits["split1"]),
                 rng.standard_normal((120, 6)))  # fmt: skip
    assert run_probe(noise, EvalSplitSpec(), method, "x")["splits"][0]["top1"]["value"] < 0.6


def test_a_class_without_training_videos_is_never_predicted() -> None:
    features = make(["a", "a", "b", "b", "c"], [""] * 5, ["train"] * 4 + ["test"], np.eye(5))
    result = probe(features, part_split(features.videos, "split1", "test", "train", "label"), "logistic")
    assert result.classes == ("a", "b", "c")
    assert result.hits(1).tolist() == [0]
    assert result.hits(2).tolist() == [0]
    record = result.as_json(features.videos)
    assert record["top5"]["value"] == 0, "even though there are only three classes"
    assert result.chance == 0
    assert record["per_class"][0] == {
        "class": "a",
        "test": 0,
        "accuracy": None,
        "low": None,
        "high": None,
    }


@pytest.mark.parametrize("method", ["logistic", "knn"])
def test_groups_are_divided_if_each_label_occurs_in_a_single_group(method: str) -> None:
    rng = np.random.default_rng(0)
    numbers = [n % 3 for n in range(60)]
    mean = np.eye(3)[numbers] + 0.5 * rng.standard_normal((60, 3))
    names, in_part = [f"c{n}" for n in numbers], ["train" if n < 45 else "test" for n in range(60)]
    features = make(names, [f"g{n}" for n in numbers], in_part, mean)
    record = run_probe(features, EvalSplitSpec(), method, "x")
    validation = record["splits"][0]["validation"]
    assert not validation["grouped"]
    assert max(validation["top1"].values()) > 0.6
    alone = run_probe(make(names, [""] * 60, in_part, mean), EvalSplitSpec(), method, "x")
    assert record["splits"][0]["chosen"] == alone["splits"][0]["chosen"]
    assert any("was chosen on folds that share groups" in note for note in record["notes"])


def test_a_fit_that_does_not_converge_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clusters(8, noise=3.0)
    assert run_probe(features, EvalSplitSpec(), "logistic", "x")["notes"] == []
    monkeypatch.setattr(probes, "MAX_ITER", 1)
    (note,) = run_probe(features, EvalSplitSpec(), "logistic", "x")["notes"]
    assert note.startswith("split1: logistic regression did not converge")


def test_notes_speak_of_test_videos() -> None:
    features = clusters(8, noise=0.3)
    parts = ["test" if n % 2 else "train" for n in range(120)]
    labels = ["new", "new", *features.videos.labels[2:]]
    labels[0] = features.videos.labels[0]
    notes = run_probe(make(labels, list(features.videos.groups), parts, features.mean_VF), EvalSplitSpec(), "knn", "x")
    shared, wrong = notes["notes"]
    assert "5 groups are in both parts" in shared
    assert "with 60 of 60 test videos" in shared
    assert wrong == "split1: the label of 1 of 60 test videos is not in part 'train', so they count as wrong"


def test_folds_are_stratified_by_group() -> None:
    features = clusters(7)
    splits = fold_splits(features.videos, "group")
    assert sorted(np.concatenate([p.query for p in splits]).tolist()) == list(range(120))
    for split in splits:
        assert not set(split.query) & set(split.gallery)
        names = [features.videos.groups[row] for row in split.query]
        assert {names.count(name) for name in set(names)} <= {4, 5}, "24 of each group in 5 folds"
    with pytest.raises(ValueError, match="no two videos from different files share"):
        fold_splits(make(["a", "b"], ["g", "h"], ["", ""], np.eye(2)).videos, "group")


def test_segments_of_a_file_are_in_one_fold_of_tests_and_of_validation() -> None:
    plain = clusters(7)
    files = tuple(f"{group}-{n // 5 % 6}" for n, group in enumerate(plain.videos.groups))  # 6 files of each group
    features = replace(plain, videos=replace(plain.videos, fingerprints=files))
    splits = fold_splits(features.videos, "group")
    assert sorted(np.concatenate([split.query for split in splits]).tolist()) == list(range(120))
    for split in splits:
        assert not {files[row] for row in split.query} & {files[row] for row in split.gallery}
    found = probe(features, splits[0], "logistic").validation
    assert (found.folds, found.grouped) == (5, True)
    with pytest.raises(ValueError, match="no two videos from different files share"):
        fold_splits(replace(features.videos, fingerprints=features.videos.groups), "group")


def test_a_single_named_group_is_kept_together() -> None:
    numbers = probes.unit_group_numbers(["g", "", "g", ""])
    assert numbers is not None
    assert numbers[0] == numbers[2]
    assert len(set(numbers.tolist())) == 3
    for nothing in (["g", "g"], ["a", "b", ""], ["", ""], None):
        assert probes.unit_group_numbers(nothing) is None
