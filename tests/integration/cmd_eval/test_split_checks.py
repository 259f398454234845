from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from cmd_eval.cli.main import main
from cmd_extract.cli.main import main as extract_main
from cmd_train.checkpoints.files import CONFIG_NAME, find_checkpoint
from tests.command_line import call


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["retrieval", "{empty}", "{shards}", "--split-column", "split9"],
            "split column 'split9' is not in the shards",
        ),
        (
            ["probe", "{empty}", "{shards}", "--split-column", "split", "--test-part", "val"],
            "part: 'val' of split contains no videos; parts with videos: test, train",
        ),
        (
            ["decoupling", "{shards}", "--both", "{empty}", "--split-column", "split9"],
            "split column 'split9' is not in the shards",
        ),
    ],
)
def test_splits_are_checked_before_the_checkpoint(
    few_shards: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    # The empty folder has no checkpoint, which is an error as soon as features are computed.
    filled = [word.format(empty=tmp_path, shards=few_shards) for word in words]
    result = CliRunner().invoke(main, filled)
    assert result.exit_code == 1
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def ambiguous(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shards with two split columns."""
    source, folder = few_shards.parent / "videos", tmp_path_factory.mktemp("ambiguous")
    header, *rows = (source / "manifest.csv").read_text().splitlines()
    place = header.split(",").index("split")
    lines = [f"{header},split2", *(f"{row},{row.split(',')[place]}" for row in rows)]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    shutil.copytree(few_shards, folder / "shards")
    result = call(extract_main, "relabel", folder / "shards", folder / "manifest.csv")
    assert result.exit_code == 0, result.output
    return folder / "shards"


@pytest.fixture(scope="module")
def trained_elsewhere(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a split column that the shards do not have; only its recorded settings are read."""
    run = tmp_path_factory.mktemp("elsewhere") / "run"
    shutil.copytree(tuned, run)
    config = find_checkpoint(run) / CONFIG_NAME
    config.write_text(config.read_text().replace('"split_column": "split"', '"split_column": "elsewhere"'))
    return run


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["baseline", "{shards}"], "use all videos with --leave-one-out"),
        (["retrieval", "{run}", "{shards}"], "use all videos with --leave-one-out"),
        (["probe", "{run}", "{shards}"], "repeat it to use several"),
        (["decoupling", "{shards}", "--both", "{run}"], "repeat it to use several"),
        (["auxiliary", "{shards}", "{out}"], "repeat it to use several"),
        (["recognition", "{run}", "{shards}"], "run the command once for each"),
    ],
)
def test_advice_fits_the_command(
    words: list[str], advice: str, ambiguous: Path, trained_elsewhere: Path, tmp_path: Path
) -> None:
    filled = [word.format(run=trained_elsewhere, shards=ambiguous, out=tmp_path / "out") for word in words]
    result = call(main, *filled)
    assert result.exit_code == 1
    message = "the shards have 2 split columns (split, split2); choose one with --split-column, or "
    assert result.output.strip().endswith(message + advice)


@pytest.mark.parametrize("command", ["retrieval", "baseline"])
def test_leave_one_out_excludes_a_split_column(command: str, few_shards: Path, tmp_path: Path) -> None:
    source = [tmp_path] if command == "retrieval" else []
    result = call(main, command, *source, few_shards, "--leave-one-out", "--split-column", "split")
    assert result.exit_code == 2
    assert "--leave-one-out uses all videos and cannot be combined with --split-column" in result.output
