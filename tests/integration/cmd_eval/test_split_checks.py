from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from cmd_eval.cli.main import main


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
