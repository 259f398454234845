from __future__ import annotations

import pytest

from cmd_extract.console.tables import format_markdown, format_table


def test_header_rule_and_aligned_rows() -> None:
    table = format_table(["run", "R@1", "R@50"], [["random", "4.2", "61.0"], ["ours, 200 epochs", "41.7", "100.0"]])
    assert table.splitlines() == [
        "run                 R@1    R@50",
        "───────────────────────────────",
        "random              4.2    61.0",
        "ours, 200 epochs   41.7   100.0",
    ]


def test_number_of_left_aligned_columns() -> None:
    rows = [["a", "b", "1"], ["aa", "bb", "22"]]
    assert format_table(["x", "y", "n"], rows, left=2).splitlines()[2] == "a    b     1"
    assert format_table(["x", "y", "n"], rows, left=1).splitlines()[2] == "a     b    1"


def test_rows_may_be_shorter_than_the_header() -> None:
    *_, first, second = format_table(
        ["state", "task", "note"], [["done"], ["failed", "3", "out of memory"]]
    ).splitlines()
    assert first == "done"
    assert second.split() == ["failed", "3", "out", "of", "memory"]


def test_long_cells_are_not_wrapped() -> None:
    cell = "path/" * 100
    assert format_table(["path"], [[cell]]).splitlines()[-1] == cell


@pytest.mark.parametrize("text", ["[bold]x[/bold]", ":100:", "{curly}", "[/]"])
def test_cells_and_headings_are_literal(text: str) -> None:
    heading, _, cell = format_table([text], [[text]]).splitlines()
    assert heading == cell == text


def test_wide_characters_are_aligned() -> None:
    *_, first, second = format_table(["name", "n"], [["视频", "1"], ["abcd", "2"]]).splitlines()
    assert (first, second) == ("视频   1", "abcd   2")


def test_markdown() -> None:
    table = format_markdown(["run", "R@1", "R@50"], [["a|b", "4.2", "61.0"], ["  chance", "0.7"]])
    assert table.splitlines() == [
        "| run | R@1 | R@50 |",
        "| --- | ---: | ---: |",
        r"| a\|b | 4.2 | 61.0 |",
        "| chance | 0.7 |  |",
    ]
