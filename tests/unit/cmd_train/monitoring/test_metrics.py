from __future__ import annotations

import sys
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
