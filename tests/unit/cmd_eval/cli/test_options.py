"""Default split columns, and values of options that the commands repeat from modules that are slow to import."""

from __future__ import annotations

import click
import pytest

from cmd_eval.cli.main import main
from cmd_eval.cli.options import resolve_columns
from cmd_eval.data.table import VideoTable
from cmd_eval.experiments.plan import SIZES
from cmd_eval.results.schema import DEFAULT_CLIPS


def videos(*columns: str) -> VideoTable:
    return VideoTable(
        ids=("a",),
        labels=("x",),
        groups=("g",),
        fingerprints=("f",),
        splits=dict.fromkeys(columns, ("test",)),
        frame_counts=(9,),
    )


def trained_on(column: str | None) -> dict[str, dict[str, str | None]]:
    return {"data": {"split_column": column}}


def test_the_split_column_of_the_training_run_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    table = videos("split1", "split2")
    assert resolve_columns(table, (), trained_on("split2")) == ("split2",)
    assert capsys.readouterr().err == "Split column: split2, as in the training run\n"
    assert resolve_columns(table, ("split1",), trained_on("split2")) == ("split1",)
    assert resolve_columns(table, ("split2", "split1", "split2")) == ("split2", "split1")
    assert capsys.readouterr().err == ""


def test_the_only_split_column_is_the_default_without_a_training_run(capsys: pytest.CaptureFixture[str]) -> None:
    for settings in (None, trained_on(None), trained_on("elsewhere")):
        assert resolve_columns(videos("fold"), (), settings) == ("fold",)
        assert capsys.readouterr().err == "Split column: fold, the only one in the shards\n"


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        (("split1", "split2"), (), r"2 split columns \(split1, split2\); choose one with --split-column"),
        (("split1",), ("split9",), "'split9' is not in the shards"),
        ((), (), "the shards have no split columns; add one to the manifest"),
    ],
)
def test_without_a_default_the_user_is_asked(columns: tuple[str, ...], given: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_columns(videos(*columns), given)


def test_repeated_values_agree() -> None:
    sizes = next(option for option in main.commands["evidence"].params if option.name == "size")
    assert isinstance(sizes.type, click.Choice)
    assert list(sizes.type.choices) == list(SIZES)
    for name in ("embed", "recognition", "decoupling", "auxiliary"):
        clips = next(option for option in main.commands[name].params if option.name == "clips")
        assert clips.default == DEFAULT_CLIPS
