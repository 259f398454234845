from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cmd_eval.data.splits import EvalSplitSpec, part_split
from cmd_eval.features.store import Features, read_features, write_features
from cmd_eval.results.files import read_result, write_result
from cmd_eval.results.tables import probe_table
from cmd_eval.tasks import fit_probe
from cmd_eval.tasks.run_probe import LowLabelSpec, probe, run_probe
from cmd_eval.tasks.sgd_probe import ClipFeatures, SgdProbe, SgdSettings
from tests.unit.cmd_eval.tasks.test_probe import clusters, make

QUICK = SgdSettings(min_steps=60, device="cpu")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_probe, "SgdSettings", lambda **given: replace(QUICK, **given))


def with_clips(features: Features, clips: int = 3, noise: float = 0.5) -> Features:
    """Clips around the mean feature of each video."""
    shift = np.random.default_rng(9).standard_normal((len(features.videos), clips, 6)) * noise
    clips_VNF = (features.mean_VF[:, None] + shift - shift.mean(axis=1, keepdims=True)).astype(np.float32)
    return replace(features, clips_VNF=clips_VNF)


def numbers_of(features: Features) -> NDArray[np.int64]:
    return np.array([int(name[1:]) for name in features.videos.labels])


def test_probabilities_are_the_softmax_averaged_over_clips() -> None:
    features = with_clips(clusters(3))
    rows = np.arange(120)
    model = SgdProbe([(0.03, 0.0), (0.003, 1e-2)], QUICK).fit(ClipFeatures(features, rows), numbers_of(features))
    found = model.probabilities(ClipFeatures(features, rows[:5]))
    assert found.shape == (2, 5, 4)
    mean, variance = model._norm.running_mean.double(), model._norm.running_var.double()
    for pair, layer in enumerate(model._layers):
        for video in range(5):
            total = np.zeros(4)
            for clip in features.clips_VNF[video]:
                normed = (torch.from_numpy(clip).double() - mean) / (variance + 1e-5).sqrt()
                logits = layer.weight.double() @ normed + layer.bias.double()
                total += (logits.exp() / logits.exp().sum()).detach().numpy()
            np.testing.assert_allclose(found[pair, video], total / 3, atol=1e-5)


def test_all_parameters_are_trained_as_if_alone() -> None:
    features = with_clips(clusters(3))
    clips, numbers = ClipFeatures(features, np.arange(120)), numbers_of(features)
    pairs = [(0.3, 0.0), (0.003, 1e-2)]
    together = SgdProbe(pairs, QUICK).fit(clips, numbers).probabilities(clips)
    for place, pair in enumerate(pairs):
        alone = SgdProbe([pair], QUICK).fit(clips, numbers).probabilities(clips)
        np.testing.assert_allclose(alone[0], together[place], atol=1e-6)
    # Weight decay shrinks the weights.
    strong = SgdProbe([(0.03, 0.0), (0.03, 1.0)], QUICK).fit(clips, numbers)
    assert strong._layers[1].weight.norm() < 0.5 * strong._layers[0].weight.norm()


def test_only_single_clips_are_trained_on() -> None:
    features = with_clips(clusters(3))
    seen: list[NDArray[np.float32]] = []

    class Recording(ClipFeatures):
        def one_clip(self, places, clip_B):  # type: ignore[no-untyped-def] # as in the base class
            found = super().one_clip(places, clip_B)
            assert len(found) <= 40, "minibatches only"
            seen.extend(found.numpy())
            return found

    SgdProbe([(0.03, 0.0)], replace(QUICK, batch_size=40)).fit(
        Recording(features, np.arange(120)), numbers_of(features)
    )
    known = {clip.tobytes() for video in features.clips_VNF for clip in video}
    assert {clip.tobytes() for clip in seen} == known, "every clip is used"


def test_sgd_probe_learns_classes_with_parameters_chosen_on_whole_groups(tmp_path) -> None:
    write_features(tmp_path / "f.h5", with_clips(clusters(5, noise=0.3)))
    features = read_features(tmp_path / "f.h5")
    record = run_probe(features, EvalSplitSpec(), "sgd", "x", device="cpu")
    split = record["splits"][0]
    assert split["top1"]["value"] == 1.0
    assert set(split["chosen"]) == {"learning rate", "weight decay"}
    assert (split["validation"]["folds"], split["validation"]["grouped"]) == (4, True)
    assert len(split["validation"]["top1"]) == 9
    noise = with_clips(clusters(5, noise=0.3))
    shuffled = replace(noise, clips_VNF=np.random.default_rng(1).permutation(noise.clips_VNF))
    assert run_probe(shuffled, EvalSplitSpec(), "sgd", "x", device="cpu")["splits"][0]["top1"]["value"] < 0.6
    assert run_probe(features, EvalSplitSpec(), "sgd", "x", device="cpu")["splits"] == record["splits"], "reproducible"


def test_large_training_parts_are_validated_on_one_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_probe, "ONE_FOLD_ABOVE", 50)
    features = with_clips(clusters(5))
    split = part_split(features.videos, "split1", "test", "train", "label")
    assert probe(features, split, "sgd", device="cpu").validation.folds == 1


def test_features_without_clips_and_ordered_readouts_have_one_sample_per_video() -> None:
    features = clusters(5)
    assert ClipFeatures(features, np.arange(3)).clips == 1
    ordered = with_clips(features)
    ordered = replace(ordered, provenance=replace(ordered.provenance, readout="ordered"))
    assert (ClipFeatures(ordered, np.arange(3)).clips, ClipFeatures(ordered, np.arange(3)).width) == (1, 18)
    bad = with_clips(features)
    bad.clips_VNF[1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        SgdProbe([(0.03, 0.0)], QUICK).fit(ClipFeatures(bad, np.arange(9)), np.arange(9) % 3)
    with pytest.raises(ValueError, match="need at least two"):
        SgdProbe([(0.03, 0.0)], QUICK).fit(ClipFeatures(features, np.arange(1)), np.zeros(1, np.int64))


@pytest.mark.parametrize("method", ["logistic", "knn", "sgd"])
def test_low_label_draws_a_share_of_each_class(method: str, tmp_path) -> None:
    features = clusters(5, noise=0.3)
    few = LowLabelSpec(percents=(1, 25), draws=2)
    record = run_probe(features, EvalSplitSpec(), method, "x", few=few, device="cpu")
    one, quarter = record["splits"][0]["low_label"]
    trained = [
        name
        for name, part in zip(features.videos.labels, features.videos.splits["split1"], strict=True)
        if part == "train"
    ]
    assert [draw["train"] for draw in one["draws"]] == [4, 4], "at least one video of each class"
    assert quarter["draws"][0]["train"] == sum(max(1, round(trained.count(name) * 0.25)) for name in set(trained))
    assert [draw["validated"] for draw in (*one["draws"], *quarter["draws"])] == [False, False, True, True]
    assert quarter["top1"]["value"] == np.mean([draw["top1"] for draw in quarter["draws"]]) > 0.9
    assert quarter["top1"]["splits"] == 2
    (note,) = record["notes"]
    assert note.startswith("split1: with 1 % of the labels, there are too few videos to leave some out, so that")
    assert "25 % of the labels, 2 draws" in probe_table(record)
    write_result(tmp_path / "r.json", record)
    assert read_result(tmp_path / "r.json")["splits"][0]["low_label"][1]["percent"] == 25


def test_folds_with_too_few_videos_to_train_on_are_left_out() -> None:
    # One group has all videos but one; leaving it out keeps a single video.
    features = make(["a"] * 7 + ["b"], ["g"] * 5 + [""] * 3, ["train"] * 6 + ["test"] * 2, np.eye(8))
    split = part_split(features.videos, "split1", "test", "train", "label")
    found = probe(features, split, "sgd", device="cpu").validation
    assert (found.folds, found.grouped) == (1, True)
    settings = fit_probe.ProbeSettings(method="sgd", device="cpu")
    arguments = features, np.arange(2), np.arange(2, 4), np.zeros(2, np.int64), None
    with pytest.raises(ValueError, match="2 videos are too few to select the hyperparameters of the SGD probe"):
        fit_probe.fit_probe(*arguments, settings)
    fixed = fit_probe.fit_probe(*arguments, replace(settings, fixed_if_needed=True))
    assert (fixed.validation, fixed.chosen["learning rate"]) == (None, 0.03)


def test_names_of_low_label_results_differ() -> None:
    assert LowLabelSpec().name == ""
    assert LowLabelSpec(percents=(1, 5, 12.5)).name == "low-label-1-5-12.5"
    assert LowLabelSpec(percents=(1,), draws=3).name == "low-label-1-3-draws"


def test_draws_of_labels_differ_and_test_videos_are_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clusters(6, noise=1.0)
    drawn: list[tuple[int, ...]] = []

    def recording(features, train_rows, *arguments):  # type: ignore[no-untyped-def] # as fit_probe
        drawn.append(tuple(train_rows.tolist()))
        return fit_probe.fit_probe(features, train_rows, *arguments)

    monkeypatch.setattr("cmd_eval.tasks.run_probe.fit_probe", recording)
    record = run_probe(features, EvalSplitSpec(), "knn", "x", few=LowLabelSpec(percents=(10,), draws=5))
    accuracies = {draw["top1"] for draw in record["splits"][0]["low_label"][0]["draws"]}
    assert len(accuracies) > 1
    parts = features.videos.splits["split1"]
    assert len(set(drawn)) == 6, "all training videos, and five different draws"
    assert {parts[row] for rows in drawn for row in rows} == {"train"}
    changed = features.mean_VF.copy()
    test = [row for row, part in enumerate(features.videos.splits["split1"]) if part == "test"]
    changed[test] = changed[test][::-1]
    videos = features.videos
    moved = make(list(videos.labels), list(videos.groups), list(videos.splits["split1"]), changed)
    again = run_probe(moved, EvalSplitSpec(), "knn", "x", few=LowLabelSpec(percents=(10,), draws=5))
    assert [draw["chosen"] for draw in again["splits"][0]["low_label"][0]["draws"]] == [
        draw["chosen"] for draw in record["splits"][0]["low_label"][0]["draws"]
    ]
