from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from cmd_train.config import OptimConfig
from cmd_train.engine.optim import build_optimizer, learning_rate


def test_learning_rate_schedule() -> None:
    config = OptimConfig(batch_size=10, epochs=20, warmup_epochs=5, final_lr_per_sample=1e-6)
    rates = [learning_rate(step, 8, config) for step in range(161)]
    assert rates[0] == pytest.approx(5e-6 * 10)
    assert rates[40] == pytest.approx(5e-4 * 10)
    assert rates[20] == pytest.approx((5e-6 + 5e-4) / 2 * 10)
    assert rates[100] == pytest.approx((5e-4 + 1e-6) / 2 * 10)
    assert rates[160] == pytest.approx(1e-6 * 10)
    assert all(a < b for a, b in itertools.pairwise(rates[:41])), "warm-up"
    assert all(a > b for a, b in itertools.pairwise(rates[40:])), "cosine"


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_optimizer_choice(name: str, kind: type) -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(optimizer=name))
    assert isinstance(optimizer, kind)
    assert optimizer.param_groups[0]["weight_decay"] == 1e-3
