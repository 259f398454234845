from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from cmd_train.data.loading import ignore_signals
from cmd_train.distributed.errors import write_error
from cmd_train.distributed.process_group import RankContext
from cmd_train.engine.stop import StopRequest, stop_requests

ALONE = RankContext(rank=0, world_size=1, device=torch.device("cpu"))


def test_signals_request_a_stop_and_handlers_are_restored(tmp_path: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        with stop_requests(tmp_path, math.inf, ALONE) as stop:
            assert stop.reason() == ""
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # forwarded by a launcher
            assert stop.reason() == number.name
    assert [signal.getsignal(number) for number in numbers] == before


def test_first_interrupt_is_acknowledged_at_once_by_rank_0(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with stop_requests(tmp_path, math.inf, ALONE):
        os.kill(os.getpid(), signal.SIGTERM)
        assert capfd.readouterr().err == ""
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # forwarded by a launcher
        assert capfd.readouterr().err.splitlines() == [
            "Finishing this step, then saving. Press Ctrl-C again to quit without saving."
        ]
    StopRequest().on_signal(signal.SIGINT)
    assert capfd.readouterr().err == ""


def test_existing_sigusr1_handler_is_kept(tmp_path: Path) -> None:
    received = []
    before = signal.signal(signal.SIGUSR1, lambda *_: received.append("existing handler"))
    try:
        with stop_requests(tmp_path, math.inf, ALONE) as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.reason() == ""
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert received == ["existing handler"]


def test_only_a_later_second_interrupt_quits_without_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, now = StopRequest(), time.monotonic()
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
        stop.on_signal(number)
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    stop.on_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        stop.on_signal(signal.SIGINT)
    assert stop.reason() == "SIGTERM"


def test_stop_file_is_removed_after_a_stop_and_kept_after_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    file.touch()
    with stop_requests(tmp_path, math.inf, ALONE) as stop:
        assert str(file) in stop.reason()
    assert not file.exists()
    file.touch()
    with pytest.raises(RuntimeError, match="broken"), stop_requests(tmp_path, math.inf, ALONE):
        raise RuntimeError("broken")
    assert file.exists()


def test_only_rank_0_checks_the_stop_file_and_the_time_limit(tmp_path: Path) -> None:
    second = RankContext(rank=1, world_size=2, device=torch.device("cpu"))
    for name in ("stop", "finished", "stopped"):
        (tmp_path / name).touch()
    with stop_requests(tmp_path, -math.inf, second) as stop:
        assert stop.reason() == ""
    assert {path.name for path in tmp_path.iterdir()} == {"stop", "finished", "stopped"}
    with stop_requests(tmp_path, math.inf, ALONE):
        assert {path.name for path in tmp_path.iterdir()} == {"stop"}


def test_workers_ignore_stop_signals() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    child = os.fork()
    if child == 0:
        ignore_signals()
        for number in numbers:
            os.kill(os.getpid(), number)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_error_files_sort_by_time(tmp_path: Path) -> None:
    written = [write_error(tmp_path / "errors", ValueError(str(rank)), rank=rank, world_size=12) for rank in (11, 2)]
    assert sorted((tmp_path / "errors").iterdir()) == written
    assert written[1].read_text().splitlines()[-1] == "ValueError: 2"
