"""The comparison of supervised runs with and without motion prediction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from cmd_eval.experiments.auxiliary import Comparison, _known_result, check_comparison, leakage_notes
from cmd_eval.results.files import write_result
from cmd_train.checkpoints.files import load_checkpoint, save_checkpoint
from cmd_train.cli.main import main as train_main
from cmd_train.config import build_config
from tests.listed_videos import ListedVideos
from tests.unit.cmd_eval.report import result_files as results
from tests.unit.cmd_train.data.test_dataset import entries


def test_the_two_sides_differ_in_motion_prediction_only(tmp_path: Path) -> None:
    comparison = Comparison(
        shards=(tmp_path,),
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
    given = {"shards": (folder,), "out": folder, "recipe": "finetune-demo", "split_columns": ("split1",)} | changes
    return Comparison(**given)  # type: ignore[arg-type] # of many types


@pytest.mark.parametrize(
    "override",
    ["run.seed=5", "data.split_column=split9", "data.train_part=val", "data.all_videos=true", "model.motion_head=true",
     "model.context_head=true", "augment.rotation_degrees=10", "sampling.motion_room=false"],
)  # fmt: skip
def test_fields_set_by_the_comparison_cannot_be_overridden(override: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{override.partition('=')[0]}: the comparison sets this field for each run"):
        comparison_of(tmp_path, overrides=(override,))


def test_the_checked_configuration_is_the_trained_one(tmp_path: Path) -> None:
    comparison = comparison_of(tmp_path, overrides=("optim.epochs=7",))
    for arm in ("none", "motion"):
        arguments = comparison.arguments("split1", 3, arm)
        printed = CliRunner().invoke(train_main, [*arguments, "--print-config"])
        assert json.loads(printed.output) == json.loads(json.dumps(comparison.config("split1", 3, arm).as_dict()))


def shards_with(monkeypatch: pytest.MonkeyPatch, *rows: tuple[str, str, str, str]) -> None:
    """Replace the shards by videos with (fingerprint, group, split1, split2)."""
    videos = [
        replace(entry, video_id=f"v{n}", label="xy"[n % 2], group=group, fingerprint=mark,
                splits={"split1": first, "split2": second})
        for n, (entry, (mark, group, first, second)) in enumerate(zip(entries() * 3, rows, strict=False))
    ]  # fmt: skip
    monkeypatch.setattr(
        "cmd_eval.experiments.auxiliary.open_folders",
        lambda _: SimpleNamespace(videos=ListedVideos(videos), data_hash="h"),
    )


def test_leakage_is_reported_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shards_with(monkeypatch, ("0", "g", "train", "train"), ("1", "h", "test", "test"), ("0", "i", "", "test"))
    assert check_comparison(comparison_of(tmp_path)) == "h"
    with pytest.raises(ValueError, match="test video v2 and training video v0 are the same file"):
        check_comparison(comparison_of(tmp_path, split_columns=("split1", "split2")))
    shards_with(monkeypatch, ("0", "g", "train", ""), ("1", "g", "test", ""))
    assert "1 groups are in both parts (g)" in leakage_notes(comparison_of(tmp_path))[0]


def test_both_sides_are_checked_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shards_with(monkeypatch, ("0", "g", "train", ""), ("1", "h", "test", ""))
    checked: list[bool] = []
    monkeypatch.setattr(
        "cmd_eval.experiments.auxiliary.check_finetuning", lambda config: checked.append(config.model.motion_head)
    )
    check_comparison(comparison_of(tmp_path))
    assert checked == [False, True]


def test_a_run_with_other_settings_is_reported_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shards_with(monkeypatch, ("0", "g", "train", ""), ("1", "h", "test", ""))
    run_dir = comparison_of(tmp_path).run_dir("split1", 2, "motion")
    config = {"settings": comparison_of(tmp_path).config("split1", 2, "motion").as_dict(), "data_hash": "h"}
    save_checkpoint(run_dir, step=4, weights={"w": torch.zeros(2)}, state={}, config=config)
    (run_dir / "config.json").write_text(json.dumps(config))
    assert check_comparison(comparison_of(tmp_path, overrides=("data.workers=1",))) == "h"
    with pytest.raises(ValueError, match=r"split1-seed2-motion: .* \(optim.epochs: .* is now 7\); use another OUT"):
        check_comparison(comparison_of(tmp_path, overrides=("optim.epochs=7",)))
    (run_dir / "config.json").write_text(json.dumps(config | {"data_hash": "g"}))
    with pytest.raises(ValueError, match="other shards"):
        check_comparison(comparison_of(tmp_path))


def test_only_a_test_of_the_last_checkpoint_of_a_finished_run_is_reused(tmp_path: Path) -> None:
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
    assert not known(), "the run is unfinished"
    (run_dir / "finished").write_text("{}")
    assert known()
    save(8)
    assert not known(), "training continued after the test"
    source |= {"step": 8}
    write_result(run_dir / "eval" / "recognition-split1.json", results.recognition(source))
    assert not known(), "other weights at the same step"
