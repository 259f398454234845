"""Figures of recognition and of the auxiliary comparison, against scikit-learn, scipy and loops."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import stats
from sklearn.metrics import accuracy_score, confusion_matrix, top_k_accuracy_score

from cmd_eval.experiments.auxiliary import Comparison, _known_result, check_comparison, leakage_notes
from cmd_eval.metrics.classification import judge
from cmd_eval.metrics.intervals import chance_recall_at
from cmd_eval.metrics.paired import Difference, Pair, mean_difference
from cmd_eval.results.schema import write_result
from cmd_train.checkpoints.files import load_checkpoint, save_checkpoint
from cmd_train.cli.main import main as train_main
from cmd_train.config import build_config
from tests.unit.cmd_eval.report import result_files as results
from tests.unit.cmd_train.data.test_dataset import entries

CLASSES = tuple("abcdefg")


def probabilities(videos: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), videos)


def test_figures_are_those_of_scikit_learn() -> None:
    probability = probabilities(60, 7)
    truth = np.random.default_rng(1).integers(7, size=60)
    result = judge(probability, [CLASSES[n] for n in truth], CLASSES)
    told = result.as_json()
    predicted = probability.argmax(1)
    assert told["top1"]["value"] == pytest.approx(accuracy_score(truth, predicted))
    assert told["top5"]["value"] == pytest.approx(top_k_accuracy_score(truth, probability, k=5, labels=range(7)))
    assert told["top1"]["low"] < told["top1"]["value"] < told["top1"]["high"]
    expected = confusion_matrix(truth, predicted, labels=range(7))
    np.testing.assert_array_equal(told["confusion"], expected)
    assert told["chance"] is None, "what it was trained on is not known"
    for number, row in enumerate(told["per_class"]):
        assert row["class"] == CLASSES[number]
        assert row["test"] == expected[number].sum()
        assert row["accuracy"] == pytest.approx(expected[number, number] / expected[number].sum())
        assert row["low"] <= row["accuracy"] <= row["high"]


def test_classes_that_the_classifier_does_not_know_count_as_wrong() -> None:
    probability = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.9, 0.05, 0.05]])
    result = judge(probability, ["a", "zebra", "c", "yak"], ("a", "b", "c"))
    assert result.classes == ("a", "b", "c", "yak", "zebra")
    assert (result.known, result.unknown) == (3, 2)
    assert result.top1_N.tolist() == [True, False, True, False]
    assert result.top5_N.tolist() == [True, False, True, False], "even where five are more than it knows"
    told = result.as_json()
    assert told["classes_unknown"] == ["yak", "zebra"]
    assert told["confusion"] == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert told["per_class"][1] == {"class": "b", "test": 0, "accuracy": None, "low": None, "high": None}


def test_chance_is_that_of_the_probe() -> None:
    trained, tested = ["a", "a", "a", "b"], ["a", "b", "b", "zebra"]
    result = judge(probabilities(4, 2), tested, ("a", "b"), [3, 1])
    assert result.chance == pytest.approx((3 / 4 + 1 / 4 + 1 / 4) / 4)
    assert result.chance == pytest.approx(chance_recall_at(tested, trained, 1))


def test_of_equal_probabilities_all_figures_tell_the_same() -> None:
    result = judge(np.full((3, 3), 1 / 3), ["a", "b", "c"], ("a", "b", "c"))
    assert [result.classes[n] for n in result.predicted_N] == ["c"] * 3
    assert result.top1_N.tolist() == [False, False, True]


def test_disagreeing_numbers_are_named() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for 2 videos and 4 classes"):
        judge(probabilities(2, 3), ["a", "b"], tuple("abcd"))


# The auxiliary comparison


def pair(column: str, seed: int, plain: list[int], motion: list[int], first: int = 0) -> Pair:
    videos = tuple(f"{column}-{first + n}" for n in range(len(plain)))
    return Pair(
        split_column=column, seed=seed, videos=videos, plain_N=np.array(plain, bool), motion_N=np.array(motion, bool)
    )


def test_the_difference_is_the_mean_over_pairs() -> None:
    pairs = [pair("split1", 0, [1, 0, 0, 0], [1, 1, 0, 0]), pair("split1", 1, [0, 0, 0, 1], [1, 1, 0, 0])]
    found = mean_difference(pairs)
    assert found.value == pytest.approx((0.25 + 0.25) / 2)
    assert found.pairs == 2
    assert found.error_of_runs == 0
    # Four videos; what each adds to the mean: (0 + 1, 1 + 1, 0, 0 - 1) / 8.
    expected = math.sqrt(4) * np.std([1 / 8, 2 / 8, 0, -1 / 8], ddof=1)
    assert found.error_of_videos == pytest.approx(expected)
    half = stats.t.ppf(0.975, 1) * expected
    assert (found.low, found.high) == pytest.approx((max(0.25 - half, -1), min(0.25 + half, 1)))


def test_without_an_error_of_videos_it_is_students_interval() -> None:
    # Every video differs by the same in a pair, so that only the runs are left.
    pairs = [pair("s", 0, [0] * 50, [1] * 50), pair("s", 1, [0] * 50, [0] * 50), pair("s", 2, [0] * 50, [1] * 50)]
    found = mean_difference(pairs)
    assert found.error_of_videos == pytest.approx(0)
    low, high = stats.t.interval(0.95, 2, loc=2 / 3, scale=stats.sem([1, 0, 1]))
    assert (found.low, found.high) == pytest.approx((low, min(high, 1)))


def test_one_pair_has_the_interval_of_its_videos() -> None:
    rng = np.random.default_rng(0)
    plain, motion = rng.integers(2, size=200), rng.integers(2, size=200)
    found = mean_difference([pair("s", 0, list(plain), list(motion))])
    assert found.error_of_runs is None
    error = stats.sem(motion - plain)
    assert found.error_of_videos == pytest.approx(error)
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, (motion - plain).mean(), error))


@pytest.mark.parametrize(("splits", "seeds"), [(1, 3), (3, 3), (2, 5)])
def test_the_interval_holds_the_truth_as_often_as_it_says(splits: int, seeds: int) -> None:
    rng = np.random.default_rng(splits)
    held = 0
    for _ in range(300):
        pairs = []
        for column in range(splits):
            # What training part and test part do to the gain, all seeds of the split share; of one split it is fixed.
            ease, gain = rng.random(40), 0.2 + (rng.normal(0, 0.15) if splits > 1 else 0)
            for seed in range(seeds):
                luck = rng.normal(0, 0.05, 2)
                plain, motion = (rng.random(40) < ease * 0.4 + 0.1 + shift for shift in (luck[0], gain + luck[1]))
                pairs.append(pair(f"s{column}", seed, list(plain), list(motion)))
        found = mean_difference(pairs)
        held += found.low <= 0.2 <= found.high
    assert held >= 0.94 * 300


def test_seeds_of_one_split_are_not_independent() -> None:
    # Splits that differ widely, seeds that agree: what is known of other splits does not grow with the seeds.
    def found(seeds: int) -> Difference:
        return mean_difference(
            [pair(c, s, [0] * 50, [gain] * 50) for c, gain in (("a", 1), ("b", 0), ("c", 1)) for s in range(seeds)]
        )

    low, _ = stats.t.interval(0.95, 2, loc=2 / 3, scale=stats.sem([1, 0, 1]))
    assert found(5).error_of_runs == found(1).error_of_runs == pytest.approx(stats.sem([1, 0, 1]))
    assert (found(5).pairs, found(5).splits) == (15, 3)
    assert found(5).low <= low
    with pytest.raises(ValueError, match="2 of a, 1 of b; need equally many"):
        mean_difference([pair(c, s, [0], [1]) for c, s in (("a", 0), ("a", 1), ("b", 0))])


def test_pairs_are_needed() -> None:
    with pytest.raises(ValueError, match="pairs: none"):
        mean_difference([])
    with pytest.raises(ValueError, match="need equally many"):
        Pair(split_column="s", seed=0, videos=("a",), plain_N=np.ones(2, bool), motion_N=np.ones(1, bool))


def test_both_sides_differ_in_motion_prediction_alone(tmp_path: Path) -> None:
    comparison = Comparison(
        shards=tmp_path,
        out=tmp_path,
        recipe="finetune-ucf101",
        split_columns=("split2",),
        overrides=("optim.epochs=7",),
    )
    plain, motion = (comparison.config("split2", 4, arm).as_dict() for arm in ("none", "motion"))
    assert plain["optim"]["epochs"] == 7
    assert (plain["run"]["seed"], plain["data"]["split_column"]) == (4, "split2")
    assert plain["model"].pop("motion_head") is False
    assert motion["model"].pop("motion_head") is True
    assert plain == motion
    recipe = build_config("finetune-ucf101").as_dict()
    assert plain["augment"] == recipe["augment"] | {"rotation_degrees": 0.0}
    assert plain["sampling"] == recipe["sampling"] | {"motion_room": True}


def comparison_of(folder: Path, **changes: object) -> Comparison:
    given = {"shards": folder, "out": folder, "recipe": "finetune-demo", "split_columns": ("split1",)} | changes
    return Comparison(**given)  # type: ignore[arg-type] # of many types


@pytest.mark.parametrize(
    "word",
    ["run.seed=5", "data.split_column=split9", "data.part=val", "model.motion_head=true", "model.context_head=true",
     "augment.rotation_degrees=10", "sampling.motion_room=false"],
)  # fmt: skip
def test_what_the_comparison_decides_cannot_be_set(word: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{word.partition('=')[0]}: decided by the comparison itself"):
        comparison_of(tmp_path, overrides=(word,))


def test_what_is_checked_is_what_is_trained(tmp_path: Path) -> None:
    comparison = comparison_of(tmp_path, overrides=("optim.epochs=7",))
    for arm in ("none", "motion"):
        words = comparison.arguments("split1", 3, arm)
        printed = CliRunner().invoke(train_main, [*words, "--print-config"])
        assert json.loads(printed.output) == json.loads(json.dumps(comparison.config("split1", 3, arm).as_dict()))


def shards_with(monkeypatch: pytest.MonkeyPatch, *rows: tuple[str, str, str, str]) -> None:
    """Shards of videos of (fingerprint, group, split1, split2)."""
    videos = [
        replace(entry, video_id=f"v{n}", label="xy"[n % 2], group=group, fingerprint=mark,
                splits={"split1": first, "split2": second})
        for n, (entry, (mark, group, first, second)) in enumerate(zip(entries() * 3, rows, strict=False))
    ]  # fmt: skip
    monkeypatch.setattr(
        "cmd_eval.experiments.auxiliary.ShardSet", lambda _: SimpleNamespace(videos=videos, data_hash="h")
    )


def test_leakage_is_told_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shards_with(monkeypatch, ("0", "g", "train", "train"), ("1", "h", "test", "test"), ("0", "i", "", "test"))
    assert check_comparison(comparison_of(tmp_path)) == "h"
    with pytest.raises(ValueError, match="test video v2 and training video v0 are the same file"):
        check_comparison(comparison_of(tmp_path, split_columns=("split1", "split2")))
    shards_with(monkeypatch, ("0", "g", "train", ""), ("1", "g", "test", ""))
    assert "1 groups are in both parts (g)" in leakage_notes(comparison_of(tmp_path))[0]


def test_both_sides_are_checked_before_the_first_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shards_with(monkeypatch, ("0", "g", "train", ""), ("1", "h", "test", ""))
    asked: list[bool] = []
    monkeypatch.setattr(
        "cmd_eval.experiments.auxiliary.check_finetuning", lambda config: asked.append(config.model.motion_head)
    )
    check_comparison(comparison_of(tmp_path))
    assert asked == [False, True]


def test_a_run_of_other_settings_is_told_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shards_with(monkeypatch, ("0", "g", "train", ""), ("1", "h", "test", ""))
    run_dir = comparison_of(tmp_path).run_dir("split1", 2, "motion")
    config = {"settings": comparison_of(tmp_path).config("split1", 2, "motion").as_dict(), "data_hash": "h"}
    save_checkpoint(run_dir, step=4, weights={"w": torch.zeros(2)}, state={}, config=config)
    (run_dir / "config.json").write_text(json.dumps(config))
    assert check_comparison(comparison_of(tmp_path, overrides=("data.workers=1",))) == "h"
    with pytest.raises(ValueError, match=r"split1-seed2-motion: .* \(optim.epochs: .* is now 7\); give another OUT"):
        check_comparison(comparison_of(tmp_path, overrides=("optim.epochs=7",)))
    (run_dir / "config.json").write_text(json.dumps(config | {"data_hash": "g"}))
    with pytest.raises(ValueError, match="other shards"):
        check_comparison(comparison_of(tmp_path))


def test_only_the_last_checkpoint_of_a_finished_training_counts_as_done(tmp_path: Path) -> None:
    comparison = comparison_of(tmp_path)
    run_dir = comparison.run_dir("split1", 0, "none")
    settings = comparison.config("split1", 0, "none").as_dict()

    def save(step: int) -> None:
        config = {"settings": settings, "data_hash": "h", "classes": ["x", "y"], "videos": 3}
        save_checkpoint(run_dir, step=step, weights={"w": torch.full((2,), step)}, state={}, config=config)

    def known() -> bool:
        return _known_result(comparison, "h", "split1", 0, "none") is not None

    save(4)
    source = results.provenance(
        settings=settings,
        data_hash="h",
        trained_on="h",
        step=4,
        checkpoint_sha256=load_checkpoint(run_dir).weights_hash,
    )
    write_result(run_dir / "eval" / "recognition-split1.json", results.recognition(source))
    assert not known(), "tested in the middle of its training"
    (run_dir / "finished").write_text("{}")
    assert known()
    save(8)
    assert not known(), "it was trained on after its test"
    source |= {"step": 8}
    write_result(run_dir / "eval" / "recognition-split1.json", results.recognition(source))
    assert not known(), "other weights of that step"
