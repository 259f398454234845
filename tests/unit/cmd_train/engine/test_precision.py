from __future__ import annotations

import pytest
import torch

from cmd_train.engine.precision import autocast


@pytest.mark.parametrize(
    ("precision", "supported", "expected"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("bf16", False, True),
        ("float32", True, False),
        ("tf32", True, False),
    ],
)
def test_mixed_precision_on_gpus_that_have_it(
    precision: str, supported: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    # Without a GPU, torch turns the context off with a warning; what was requested is what counts.
    requested: dict[str, bool] = {}
    monkeypatch.setattr(torch, "autocast", lambda *_, enabled: requested.update(enabled=enabled))
    autocast(precision, torch.device("cuda"))
    assert requested["enabled"] is expected


def test_auto_is_float32_on_a_cpu() -> None:
    with autocast("auto", torch.device("cpu")):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype is torch.float32
    with autocast("bf16", torch.device("cpu")):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype is torch.bfloat16
