from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from cmd_eval.cli.main import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["retrieval", "{empty}", "{shards}"], "split_column: 'split1' is not among"),
        (["probe", "{empty}", "{shards}", "--split-column", "split", "--test", "val"], "part: no video of split"),
        (["decoupling", "{shards}", "--both", "{empty}"], "split_column: 'split1' is not among"),
    ],
)
def test_a_wrong_question_is_refused_before_a_checkpoint_is_looked_for(
    few_shards: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    # In an empty folder there is no checkpoint: its error would come as soon as features are to be made.
    filled = [word.format(empty=tmp_path, shards=few_shards) for word in words]
    result = CliRunner().invoke(main, filled)
    assert result.exit_code == 1
    assert message in result.output
    assert list(tmp_path.iterdir()) == []
