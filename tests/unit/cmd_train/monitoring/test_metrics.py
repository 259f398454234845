from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cmd_train.monitoring.metrics import GpuMonitor


class NVMLError(Exception):
    pass


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A stand-in for the GPU driver."""
    module = ModuleType("pynvml")
    module.NVMLError = NVMLError  # type: ignore[attr-defined] # modules accept any attribute
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return monkeypatch


def test_utilization_is_that_of_the_gpu_of_the_run(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(torch.cuda, "utilization", {torch.device("cuda", 0): 90, torch.device("cuda", 1): 37}.__getitem__)
    assert GpuMonitor(torch.device("cuda", 1), print).utilization() == 0.37


def test_no_utilization_on_a_cpu(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(torch.cuda, "utilization", lambda device: 1 / 0)
    assert GpuMonitor(torch.device("cpu"), print).utilization() is None


def test_no_utilization_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 1 / 0)
    assert GpuMonitor(torch.device("cuda"), print).utilization() is None


def test_driver_error_is_logged_once(driver: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> int:
        raise NVMLError("Not Supported")

    driver.setattr(torch.cuda, "utilization", fail)
    lines: list[str] = []
    monitor = GpuMonitor(torch.device("cuda"), lines.append)
    assert [monitor.utilization(), monitor.utilization()] == [None, None]
    assert lines == ["GPU utilization is not available from the driver: Not Supported"]


_WITHOUT_TENSORBOARD = """
import sys
from pathlib import Path
sys.modules["tensorboard"] = None
from cmd_train.monitoring.metrics import _open_tensorboard
assert _open_tensorboard(Path(sys.argv[1]) / "tensorboard", 0, print) is None
"""


def test_missing_tensorboard_is_logged_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WITHOUT_TENSORBOARD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tensorboard is not installed; metrics are written to metrics.jsonl only\n"
    assert list(tmp_path.iterdir()) == []
