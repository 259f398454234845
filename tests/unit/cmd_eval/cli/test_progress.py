from __future__ import annotations

import pytest

from cmd_eval.cli.options import show_progress


def test_a_count_that_starts_again_has_its_own_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("cmd_eval.cli.options.time.monotonic", lambda: now[0])
    show = show_progress("classify")
    # Two tests of six videos, two a second, with a training of 1,000 seconds before each.
    for _ in range(2):
        now[0] += 1000
        for done in range(1, 7):
            show(done, 6)
            now[0] += 0.5
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["classify 6/6 videos, 2.0 a second, about 0 s left"] * 2


def test_what_is_left_is_told_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("cmd_eval.cli.options.time.monotonic", lambda: now[0])
    show = show_progress("embed")
    for done in (501, 502, 503, 504):  # what an earlier run has done says nothing of the speed
        show(done, 1000)
        now[0] += 5
    assert capsys.readouterr().err == "embed 503/1000 videos, 0.2 a second, about 2485 s left\n"
    show_progress("embed")(1, 1)
    assert capsys.readouterr().err == "embed 1/1 videos\n"
