from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cmd_eval.data.table import VideoTable
from cmd_eval.experiments.evidence import Measurement, Row, chance, difference, differences
from cmd_eval.experiments.plan import NETWORKS, SIZES, EvidencePlan, EvidenceSize, evidence_splits, is_finished
from cmd_eval.metrics.intervals import mean_interval
from cmd_train.checkpoints.files import save_checkpoint
from cmd_train.config import build_config, parse_overrides

MEASURES = ("R@1", "R@5", "R@10", "probe")


def measurement(
    rows: list[int], hits: list[float], *, target: str = "label", split: str = "split1", seed: int = 0
) -> Measurement:
    return Measurement(
        target=target,
        split_column=split,
        seed=seed,
        rows=np.array(rows),
        hits=dict.fromkeys(MEASURES, np.array(hits, float)),
        chance=dict.fromkeys(MEASURES, 1 / len(rows)),
    )


# Both splits test video 2; the second split has a run with seed 0 only.
GROUPS = ("g", "h", "g", "", "", "i")
BOTH = Row(
    name="both",
    readout="mean",
    groups=GROUPS,
    measurements=[
        measurement([0, 1, 2], [1, 0, 1]),
        measurement([0, 1, 2], [0, 0, 1], seed=1),
        measurement([2, 5], [0, 1], split="split2"),
        *[measurement([0, 1, 2, 5], [1, 1, 1, 0], target="group", seed=seed) for seed in (0, 1)],
    ],
)
OTHER = Row(
    name="other",
    groups=GROUPS,
    measurements=[
        measurement([0, 1, 2], [0, 0, 1]),
        measurement([2, 5], [0, 0], split="split2"),
        measurement([0, 1, 2, 5], [0, 1, 0, 0], target="group"),
    ],
)


def test_a_video_counts_once_with_its_mean() -> None:
    assert BOTH.per_video("label", "R@1") == {0: 0.5, 1: 0.0, 2: pytest.approx(2 / 3), 5: 1.0}
    assert BOTH.per_video("label", "R@1", split_column="split1") == {0: 0.5, 1: 0.0, 2: 1.0}
    assert BOTH.per_video("label", "R@1", seed=1) == {0: 0.0, 1: 0.0, 2: 1.0}
    value = BOTH.value("label", "R@1", seed=3)
    assert value == mean_interval(np.array([0.5, 0.0, 2 / 3, 1.0]), ["g", "h", "g", "i"], seed=3)
    record = BOTH.as_json()
    assert record["by_label"]["probe"]["value"] == pytest.approx((0.5 + 2 / 3 + 1) / 4)
    assert [split["by_label"]["R@1"]["value"] for split in record["by_split"]] == [0.5, 0.5]
    assert [one["by_label"]["R@1"] for one in record["by_seed"][:1]] == [pytest.approx((1 + 0 + 0.5 + 1) / 4)]


def test_differences_are_paired_by_video() -> None:
    found = difference(BOTH, OTHER, "label", "R@1", seed=1)
    gains = np.array([0.5, 0.0, 2 / 3 - 0.5, 1.0])
    assert found == mean_interval(gains, ["g", "h", "g", "i"], seed=1)
    assert found.value == pytest.approx(gains.mean())
    ordered = replace(BOTH, readout="ordered")
    untrained = [replace(OTHER, name="untrained", readout=one.readout) for one in (BOTH, ordered)]
    compared = [
        (one["first"], one["readout"], one["second"], one["target"], one["measure"])
        for one in differences([BOTH, ordered, *untrained, OTHER], "both")
    ]
    measures = [("label", "R@1"), ("label", "probe"), ("group", "R@1")]
    assert compared == [
        ("both", readout, second, *measure)
        for readout in ("mean", "ordered")
        for second in ("untrained", "other")
        for measure in measures
    ]
    fewer = replace(OTHER, name="fewer", measurements=OTHER.measurements[:1])
    with pytest.raises(ValueError, match="both and fewer: measured by label on different videos"):
        difference(BOTH, fewer, "label", "R@1")


def test_chance_is_weighted_by_videos() -> None:
    assert chance(OTHER)["by_label"]["R@1"] == pytest.approx((3 * (1 / 3) + 2 * (1 / 2)) / 5)
    assert chance(OTHER)["by_group"] == dict.fromkeys(("R@1", "R@5", "R@10"), 0.25)


def plan(size: EvidenceSize, **changes: object) -> EvidencePlan:
    given = {"out": Path("o"), "split_columns": ("split1", "split2"), "epochs": 10, "auxiliary_epochs": 6} | changes
    return EvidencePlan(shards=(Path("s"),), size_name="small", size=size, **given)  # type: ignore[arg-type] # of many types


@pytest.mark.parametrize("name", SIZES)
def test_every_size_gives_valid_training_configurations(name: str) -> None:
    of_size = plan(SIZES[name])
    runs = of_size.pretraining_runs
    size = SIZES[name]
    assert len(set(map(of_size.run_dir, runs))) == len(runs) == 2 * (size.seeds + 3 * size.single_seeds)
    for run in runs:
        config = of_size.config(run)
        network = NETWORKS[run.network]
        assert (config.model.context_head, config.model.motion_head) == (network.context, network.motion)
        contrastive = network.folder == "contrastive"
        assert config.loss.motion_target == ("features" if contrastive else "directions")
        assert (config.run.seed, config.data.split_column, config.optim.epochs) == (run.seed, run.split_column, 10)
        # cmd-train resolves the arguments to the same configuration.
        arguments = of_size.arguments(run)
        pairs = [arguments[place + 1] for place, argument in enumerate(arguments) if argument == "--set"]
        given = {"run.seed": run.seed, "data.split_column": run.split_column, **parse_overrides(pairs)}
        assert build_config(arguments[arguments.index("--recipe") + 1], given) == config
    comparison = of_size.comparison
    assert comparison is not None
    assert set(comparison.pretrained) == {(c, s) for c in ("split1", "split2") for s in range(size.auxiliary_seeds)}
    for arm in ("none", "motion", "pretrained"):
        assert comparison.config("split1", 0, arm).optim.epochs == 6


def test_groups_of_one_video_each_are_refused_before_training() -> None:
    def videos(groups: tuple[str, ...]) -> VideoTable:
        ids = tuple("abcd")
        parts = {"split1": ("train", "train", "test", "test")}
        return VideoTable(
            ids=ids, labels=("x", "y", "x", "y"), groups=groups, fingerprints=ids, splits=parts, frame_counts=(9,) * 4
        )

    by_label, by_group = evidence_splits(videos(("g", "g", "h", "")), ["split1"])
    assert [len(one.query) for one in (*by_label, *by_group)] == [2, 3]
    with pytest.raises(ValueError, match="group: no two videos of split1 share a group"):
        evidence_splits(videos(("g", "h", "i", "")), ["split1"])


def test_videos_in_neither_part_are_not_evaluated() -> None:
    ids = tuple("abcde")
    parts = {"split": ("train", "train", "test", "val", ""), "inner": ("train", "test", "", "", "")}
    videos = VideoTable(
        ids=ids, labels=tuple("xxxyy"), groups=("g",) * 5, fingerprints=ids, splits=parts, frame_counts=(9,) * 5
    )
    _, (outer, inner) = evidence_splits(videos, ["split", "inner"])
    assert (outer.query.tolist(), inner.query.tolist()) == ([0, 1, 2], [0, 1])


def test_a_finished_run_has_the_same_settings_and_shards(tmp_path: Path) -> None:
    own = plan(SIZES["small"], out=tmp_path)
    run = own.pretraining_runs[0]
    folder = own.run_dir(run)
    assert not is_finished(own, run, "h" * 64)
    config = {"settings": own.config(run).as_dict(), "data_hash": "h" * 64}
    save_checkpoint(folder, step=4, weights={"w": torch.zeros(2)}, state={}, config=config)
    (folder / "config.json").write_text(json.dumps(config))
    assert not is_finished(own, run, "h" * 64), "it is unfinished"
    (folder / "finished").write_text("{}")
    assert is_finished(own, run, "h" * 64)
    with pytest.raises(ValueError, match=r"both: contains a run with different settings \(optim.epochs: 10 is now 11"):
        is_finished(plan(SIZES["small"], out=tmp_path, epochs=11), run, "h" * 64)
    with pytest.raises(ValueError, match="other shards"):
        is_finished(own, run, "g" * 64)


def test_overrides_take_precedence_over_the_size_and_the_warm_up() -> None:
    run = plan(SIZES["small"]).pretraining_runs[0]
    assert plan(SIZES["small"]).config(run).optim.warmup_epochs == pytest.approx(10 * 2 / 40)
    changed = plan(SIZES["full"], overrides=("optim.warmup_epochs=1.5", "sampling.stride=3")).config(run)
    assert (changed.optim.warmup_epochs, changed.sampling.stride) == (1.5, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: .*0"),
        ({"auxiliary_seeds": -1}, "auxiliary_seeds: .*-1"),
        ({"single_seeds": 4}, "seeds = 3"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, int], message: str) -> None:
    numbers = {"steps": 1, "seeds": 3, "single_seeds": 1, "auxiliary_steps": 1, "auxiliary_seeds": 1} | changes
    with pytest.raises(ValueError, match=message):
        EvidenceSize(recipe="gestures", auxiliary_recipe="finetune-gestures", **numbers)  # type: ignore[arg-type] # of many types
