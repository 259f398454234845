from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from cmd_train.monitoring.gpu_use import GpuUse


class NVMLError(Exception):
    pass


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A driver to be asked, where there is none."""
    module = ModuleType("pynvml")
    module.NVMLError = NVMLError  # type: ignore[attr-defined] # modules take any name
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return monkeypatch


def test_the_driver_is_asked_of_the_trainings_own_gpu(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(torch.cuda, "utilization", {torch.device("cuda", 0): 90, torch.device("cuda", 1): 37}.__getitem__)
    assert GpuUse(torch.device("cuda", 1), print).share() == 0.37


def test_a_cpu_is_not_asked(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(torch.cuda, "utilization", lambda device: 1 / 0)
    assert GpuUse(torch.device("cpu"), print).share() is None


def test_without_the_extra_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 1 / 0)
    assert GpuUse(torch.device("cuda"), print).share() is None


def test_a_driver_that_does_not_tell_stops_no_training(driver: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device) -> int:
        raise NVMLError("Not Supported")

    driver.setattr(torch.cuda, "utilization", refuse)
    said: list[str] = []
    use = GpuUse(torch.device("cuda"), said.append)
    assert [use.share(), use.share()] == [None, None]
    assert said == ["the driver does not tell how busy the GPU is: Not Supported"]
