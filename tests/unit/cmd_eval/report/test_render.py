from __future__ import annotations

import pytest

from cmd_eval.report.render import without_folders


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/runs/demo", "demo"),
        (
            "cmd-eval retrieval /data/run '/my data/shards' --output=/tmp/x.json",
            "cmd-eval retrieval run 'shards' --output=x.json",
        ),
        ("/a/b/run.h5: contains other features (/c/d)", "run.h5: contains other features (d)"),
        ("/a/b: 3 videos", "b: 3 videos"),
        ("run `cmd-eval probe /a/b/run SHARDS`", "run `cmd-eval probe run SHARDS`"),
        ("runs/demo, ../shared/x, ~/y, test / train, frames/s", "runs/demo, ../shared/x, ~/y, test / train, frames/s"),
        ("https://arxiv.org/abs/2104.00862", "https://arxiv.org/abs/2104.00862"),
    ],
)
def test_absolute_paths_are_shortened(text: str, expected: str) -> None:
    assert without_folders(text) == expected
