from __future__ import annotations

import contextlib
import os
import re
import threading

import pytest

from cmd_extract.console import progress
from cmd_extract.console.progress import ProgressDisplay

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_plain_lines_have_counts_note_rate_and_eta(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("extract", plain_seconds=10) as display:
        assert not display.live
        for done in range(500, 521):
            display.update(done, 1000, "1 failed")
            clock.now += 2
        clock.now += 2
        display.update(1000, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "extract 505/1000 videos, 1 failed, 0.5 videos/s, about 990 s left",
        "extract 510/1000 videos, 1 failed, 0.5 videos/s, about 980 s left",
        "extract 515/1000 videos, 1 failed, 0.5 videos/s, about 970 s left",
        "extract 520/1000 videos, 1 failed, 0.5 videos/s, about 960 s left",
        "extract 1000/1000 videos, 11.4 videos/s",
    ]


def test_repeated_counts_print_no_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("verify", "shards") as display:
        for _ in range(3):
            clock.now += 20
            display.update(7, 7)
    assert capsys.readouterr().err == "verify 7/7 shards\n"


def test_a_lower_count_restarts_the_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("embed") as display:
        display.update(0, 100)
        clock.now += 1
        display.update(100, 100)
        display.update(0, 10)
        clock.now += 100
        display.update(5, 10)
    assert capsys.readouterr().err.splitlines() == [
        "embed 100/100 videos, 100.0 videos/s",
        "embed 5/10 videos, 0.1 videos/s, about 100 s left",
    ]


def test_plain_lines_can_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("train", "steps", plain_seconds=None) as display:
        display.update(10, 10)
        display.log("step 10")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "step 10\n")


class Terminal:
    """Pseudo-terminal as standard error within a ``with`` block; ``output`` is what was written to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str = "xterm-256color") -> None:
        monkeypatch.setenv("TERM", name)
        monkeypatch.setenv("COLUMNS", "80")
        self._monkeypatch = monkeypatch
        self._reader = threading.Thread(target=self._read)
        self.output = ""

    def __enter__(self) -> Terminal:
        self._master, slave = os.openpty()
        self._stream = os.fdopen(slave, "w", encoding="utf-8")
        # Not in a fixture: pytest sets sys.stderr before each test.
        self._monkeypatch.setattr("sys.stderr", self._stream)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._reader.join()
        os.close(self._master)

    def _read(self) -> None:
        data = b""
        # Reading fails once the other end is closed.
        with contextlib.suppress(OSError):
            while chunk := os.read(self._master, 1 << 16):
                data += chunk
        self.output = data.decode()


def screen(output: str) -> list[str]:
    """Lines on the screen after the output: a carriage return followed by text replaces a line."""
    lines = CONTROL.sub("", output).replace("\r\n", "\n").removesuffix("\n").split("\n")
    return [line.rpartition("\r")[2].rstrip() for line in lines]


def test_live_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(monkeypatch) as terminal, ProgressDisplay("extract") as display:
        assert display.live
        display.update(3, 10)
        display.update(4, 10, "1 failed")
        display.log("a.mp4 [bold] :100: cannot be opened, " + "x" * 80)
        print("result")
        display.update(10, 10, "2 failed")
    output = terminal.output
    assert "\x1b[?25l" in output, "the cursor is hidden"
    assert output.endswith("\x1b[?25h"), "the cursor is shown again"
    logged, bar = screen(output)
    assert logged == "a.mp4 [bold] :100: cannot be opened, " + "x" * 80
    assert re.fullmatch(r"extract ━{20} 10/10 videos \S+ 2 failed", bar)
    assert capsys.readouterr().out == "result\n", "standard output is not redirected to the terminal"


def test_a_long_note_is_cut_at_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with Terminal(monkeypatch) as terminal, ProgressDisplay("train", "steps") as display:
        display.update(99999, 100000, "loss 1.234, " * 20)
    (bar,) = screen(terminal.output)
    assert "train ━" in bar
    assert " 99999/100000 steps -:--:-- loss 1.234, " in bar
    assert bar.endswith("…")
    assert len(bar) <= 80


def test_live_bar_restarts_with_a_lower_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with Terminal(monkeypatch) as terminal, ProgressDisplay("embed") as display:
        display.update(5, 5)
        display.update(1, 8)
    (bar,) = screen(terminal.output)
    assert "1/8 videos -:--:--" in bar


def test_the_cursor_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), Terminal(monkeypatch) as terminal, ProgressDisplay("embed"):
        raise KeyboardInterrupt
    assert terminal.output.endswith("\x1b[?25h")


@pytest.mark.parametrize("name", ["dumb", "unknown"])
def test_terminals_without_cursor_control_get_plain_lines(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with Terminal(monkeypatch, name) as terminal, ProgressDisplay("embed") as display:
        assert not display.live
        display.update(5, 5)
    assert terminal.output == "embed 5/5 videos\r\n"
