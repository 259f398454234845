from __future__ import annotations

import numpy as np
import pytest
import scipy.special
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cmd_eval.data.splits import pair_parts
from cmd_eval.data.table import VideoTable
from cmd_eval.features.store import Features
from cmd_eval.results.schema import Provenance
from cmd_eval.results.tables import confusion_table, probe_table
from cmd_eval.tasks import probe as probes
from cmd_eval.tasks.probe import TrainingRows, choose_setting, scores
from cmd_eval.tasks.run_probe import fold_pairings, probe, run_probe
from cmd_eval.tasks.run_retrieval import Question


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
    """Four classes in 6 features, 5 groups that say nothing of the class."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 4, videos)
    centres = rng.standard_normal((4, 6)) * 2
    mean = centres[numbers] + noise * rng.standard_normal((videos, 6))
    groups = [f"g{n % 5}" for n in range(videos)]
    parts = ["test" if n % 5 == 4 else "train" for n in range(videos)]
    return make([f"c{n}" for n in numbers], groups, parts, mean)


@pytest.mark.parametrize("setting", [0.01, 1.0])
def test_the_linear_probe_is_scikit_learns_on_standardised_features(setting: float) -> None:
    features = clusters()
    pairing = pair_parts(features.videos, "split1", "test", "train", "label")
    numbers = np.array([int(features.videos.labels[row][1]) for row in pairing.gallery])
    train = TrainingRows(rows=pairing.gallery, numbers=numbers, classes=5)
    found = scores("linear", features, train, pairing.query, [setting])[setting]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=setting, max_iter=2000))
    model.fit(features.mean_VF[pairing.gallery].astype(float), numbers)
    expected = model.predict_log_proba(features.mean_VF[pairing.query].astype(float))
    np.testing.assert_allclose(scipy.special.log_softmax(found[:, :4], axis=1), expected, atol=1e-6)
    assert (found[:, 4] == -np.inf).all(), "no training video shows this class"


@pytest.mark.parametrize("k", [1, 3, 10])
def test_votes_of_neighbours_are_scikit_learns(k: int) -> None:
    features = clusters(1)
    pairing = pair_parts(features.videos, "split1", "test", "train", "label")
    numbers = np.array([int(features.videos.labels[row][1]) for row in pairing.gallery])
    train = TrainingRows(rows=pairing.gallery, numbers=numbers, classes=4)
    found = scores("knn", features, train, pairing.query, [1, k])[k]
    model = KNeighborsClassifier(k, metric="cosine").fit(features.mean_VF[pairing.gallery], numbers)
    votes = model.predict_proba(features.mean_VF[pairing.query]) * k
    np.testing.assert_allclose(found.round(), votes.round())
    distance = 1 - np.stack(
        [
            [
                max(
                    features.mean_VF[row] @ features.mean_VF[query]
                    / np.linalg.norm(features.mean_VF[row]) / np.linalg.norm(features.mean_VF[query])
                    for row in pairing.gallery[numbers == number]
                )
                for number in range(4)
            ]
            for query in pairing.query
        ]
    )  # fmt: skip
    for n in range(len(pairing.query)):
        expected = sorted(range(4), key=lambda c: (-votes[n, c].round(), distance[n, c]))
        assert np.argsort(-found[n]).tolist() == expected, "equal votes in the order of the nearest video"


def test_the_setting_is_chosen_without_the_tested_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clusters(2)
    pairing = pair_parts(features.videos, "split1", "test", "train", "label")
    result = probe(features, pairing, "linear")
    # Other features for the tested videos must choose the same.
    changed = features.mean_VF.copy()
    changed[pairing.query] = 1e3
    again = probe(make(list(features.videos.labels), list(features.videos.groups),
                       list(features.videos.splits["split1"]), changed), pairing, "linear")  # fmt: skip
    assert again.validation == result.validation
    asked: list[tuple[set[int], set[int]]] = []
    plain = probes.scores

    def recording(method, features, train, test, settings):  # type: ignore[no-untyped-def] # as the one it wraps
        asked.append((set(train.rows.tolist()), set(test.tolist())))
        return plain(method, features, train, test, settings)

    monkeypatch.setattr(probes, "scores", recording)
    probe(features, pairing, "knn")
    tested = set(pairing.query.tolist())
    assert len(asked) == 4, "four groups are in the training part"
    for kept, left_out in asked:
        assert not (kept | left_out) & tested
        groups = features.videos.groups
        assert not {groups[row] for row in kept} & {groups[row] for row in left_out}
    assert set.union(*(left_out for _, left_out in asked)) == set(pairing.gallery.tolist())


def test_validation_is_a_loop_over_parts() -> None:
    features = clusters(3, noise=3.0)
    rows = np.arange(100)
    numbers = np.array([int(features.videos.labels[row][1]) for row in rows])
    train = TrainingRows(rows=rows, numbers=numbers, classes=4, groups=[features.videos.groups[row] for row in rows])
    found = choose_setting("knn", features, train)
    assert (found.folds, found.grouped) == (5, True)
    for k, accuracy in found.accuracy.items():
        right = 0
        for group in set(features.videos.groups):
            inside = np.array([features.videos.groups[row] == group for row in rows])
            part = TrainingRows(rows=rows[~inside], numbers=numbers[~inside], classes=4)
            found_scores = scores("knn", features, part, rows[inside], [k])[k]
            right += (found_scores.argmax(axis=1) == numbers[inside]).sum()
        assert accuracy == pytest.approx(right / 100)
    assert found.best == max(found.accuracy, key=lambda k: (found.accuracy[k], -k))


def test_without_groups_the_parts_are_stratified() -> None:
    features = clusters(4)
    rows = np.arange(100)
    numbers = np.array([int(features.videos.labels[row][1]) for row in rows])
    for groups in (None, [""] * 100, ["one"] * 100):
        found = choose_setting("linear", features, TrainingRows(rows=rows, numbers=numbers, classes=4, groups=groups))
        assert (found.folds, found.grouped) == (5, False)
    # Videos without a group among others with one stand alone.
    mixed = ["a"] * 50 + ["b"] * 40 + [""] * 10
    assert choose_setting("knn", features, TrainingRows(rows=rows, numbers=numbers, classes=4, groups=mixed)).grouped
    with pytest.raises(ValueError, match="no class of the 4 training videos"):
        choose_setting("knn", features, TrainingRows(rows=rows[:4], numbers=np.arange(4), classes=4))


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_a_probe_learns_what_is_there_and_nothing_else(method: str) -> None:
    told = clusters(5, noise=0.3)
    record = run_probe(told, Question(kinds=("label",)), method, "cmd-eval probe x")
    split = record["splits"][0]
    assert split["top1"]["value"] == 1.0
    assert split["classes"] == ["c0", "c1", "c2", "c3"]
    assert np.trace(split["confusion"]) == split["test"] == 24
    assert sum(item["test"] for item in split["per_class"]) == 24
    assert set(split["chosen"]) == {"C" if method == "linear" else "k"}
    assert 0.2 < split["chance"] < 0.3
    assert (split["train_part"], split["test_part"]) == ("train", "test")
    assert record["mean"][0]["top1"] == {"value": 1.0, "spread": None, "splits": 1}
    assert "top-1" in probe_table(record)
    assert "3 c3" in confusion_table(record)
    rng = np.random.default_rng(6)
    noise = make(list(told.videos.labels), list(told.videos.groups), list(told.videos.splits["split1"]),
                 rng.standard_normal((120, 6)))  # fmt: skip
    assert run_probe(noise, Question(), method, "x")["splits"][0]["top1"]["value"] < 0.6


def test_a_class_that_was_never_trained_on_is_never_right() -> None:
    features = make(["a", "a", "b", "b", "c"], [""] * 5, ["train"] * 4 + ["test"], np.eye(5))
    result = probe(features, pair_parts(features.videos, "split1", "test", "train", "label"), "linear")
    assert result.classes == ("a", "b", "c")
    assert result.hits(1).tolist() == [0]
    assert result.hits(2).tolist() == [0]
    assert result.as_json()["top5"]["value"] == 0, "of three classes, too"
    assert result.chance == 0
    assert result.as_json()["per_class"][0] == {"class": "a", "test": 0, "accuracy": pytest.approx(np.nan, nan_ok=True)}


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_where_each_label_lies_in_one_group_the_setting_is_still_chosen(method: str) -> None:
    rng = np.random.default_rng(0)
    numbers = [n % 3 for n in range(60)]
    mean = np.eye(3)[numbers] + 0.5 * rng.standard_normal((60, 3))
    names, parts = [f"c{n}" for n in numbers], ["train" if n < 45 else "test" for n in range(60)]
    features = make(names, [f"g{n}" for n in numbers], parts, mean)
    record = run_probe(features, Question(), method, "x")
    validation = record["splits"][0]["validation"]
    assert not validation["grouped"]
    assert max(validation["top1"].values()) > 0.6
    assert record["splits"][0]["chosen"] == run_probe(make(names, [""] * 60, parts, mean), Question(), method, "x")[
        "splits"][0]["chosen"]  # fmt: skip
    assert any("was chosen on parts that share groups" in note for note in record["notes"])


def test_a_fit_that_has_not_settled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clusters(8, noise=3.0)
    assert run_probe(features, Question(), "linear", "x")["notes"] == []
    monkeypatch.setattr(probes, "_MAX_STEPS", 1)
    (note,) = run_probe(features, Question(), "linear", "x")["notes"]
    assert note == "split1: the linear probe had not settled after its last step; more of them may change its figures"


def test_folds_hold_their_share_of_every_group() -> None:
    features = clusters(7)
    pairings = fold_pairings(features.videos, "group")
    assert sorted(np.concatenate([p.query for p in pairings]).tolist()) == list(range(120))
    for pairing in pairings:
        assert not set(pairing.query) & set(pairing.gallery)
        names = [features.videos.groups[row] for row in pairing.query]
        assert {names.count(name) for name in set(names)} <= {4, 5}, "24 of each group in 5 parts"
    with pytest.raises(ValueError, match="no two videos share"):
        fold_pairings(make(["a", "b"], ["g", "h"], ["", ""], np.eye(2)).videos, "group")
