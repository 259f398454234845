"""``cmd-eval auxiliary`` on synthetic videos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmd_eval.cli.main import main as eval_main
from tests.command_line import call, train_here
from tests.integration.cmd_train.finetuning import config_of, settings

pytestmark = pytest.mark.slow


def test_runs_with_and_without_motion_prediction_are_compared(few_shards: Path, tmp_path: Path) -> None:
    options = [word for word in settings(optim__epochs=1) if word not in ("--split-column", "split")]
    arguments = [few_shards, tmp_path / "out", *options, "--clips", 1]
    result = call(eval_main, "auxiliary", *arguments, "--seeds", 1)
    assert result.exit_code == 0, result.output
    assert "Split column: split, the only one in the shards" in result.output
    record = json.loads((tmp_path / "out" / "eval" / "auxiliary.json").read_text())
    assert (record["kind"], record["pairs"]) == ("auxiliary", 1)
    top1 = {run["auxiliary"]: run["top1"]["value"] for run in record["runs"]}
    assert record["difference"]["value"] == pytest.approx(top1["motion"] - top1["none"])
    assert record["difference"]["low"] <= record["difference"]["value"] <= record["difference"]["high"]
    assert f"changes top-1 by {100 * record['difference']['value']:+.1f} points" in result.output
    assert "the interval covers the choice of test videos only" in result.output
    plain, motion = (config_of(Path(run["run_dir"]))["settings"] for run in record["runs"])
    assert plain["model"].pop("motion_head") is False
    assert motion["model"].pop("motion_head") is True
    assert plain == motion

    # Another seed adds two runs; finished ones are kept.
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmd_eval.experiments.jobs.run_cmd_train", train_here)
        again = call(eval_main, "auxiliary", *arguments, "--seeds", 2)
    assert again.exit_code == 0, again.output
    assert again.output.count("(already done)") == 2
    assert {path: path.stat().st_mtime_ns for path in done} == done
    more = json.loads((tmp_path / "out" / "eval" / "auxiliary.json").read_text())
    assert (more["pairs"], len(more["runs"])) == (2, 4)

    assert "warning: split: 6 groups are in both parts" in again.output
    assert any("6 groups are in both parts" in note for note in more["notes"])
    page = call(eval_main, "report", tmp_path / "out")
    assert page.exit_code == 0, page.output
    assert "incomplete or invalid" not in page.output
    text = (tmp_path / "out" / "report.html").read_text()
    assert f"{100 * more['difference']['value']:+.1f} points" in text
    assert "over 2 pairs of runs" in text

    changed = call(eval_main, "auxiliary", *arguments, "--seeds", 1, "--set", "optim.epochs=2")
    assert changed.exit_code == 1
    assert "optim.epochs: 1 is now 2" in changed.output
    assert "use another OUT" in changed.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--recipe", "ucf101"), "'ucf101' is not for cmd-train finetune"),
        (("--recipe", "finetune-demo", "--set", "optim.speed=3"), "optim.speed"),
        (("--recipe", "finetune-demo", "--split-column", "split9"), "'split9'"),
        (("--recipe", "finetune-demo", "--set", "run.seed=5"), "run.seed: the comparison sets this field for each run"),
        (("--recipe", "finetune-demo", "--test-part", "train"), "trained on 12 of the 12 test videos"),
    ],
)
def test_invalid_input_is_reported_before_any_run(
    options: tuple[str, ...], message: str, few_shards: Path, tmp_path: Path
) -> None:
    result = call(eval_main, "auxiliary", few_shards, tmp_path / "out", *options)
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "out").exists()
