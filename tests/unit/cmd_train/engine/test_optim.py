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


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_and_biases_can_be_excluded_from_weight_decay(name: str) -> None:
    network = nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3), nn.Flatten(), nn.Linear(3, 2))
    optimizer = build_optimizer(network, OptimConfig(optimizer=name, decay_norms_and_biases=False))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in network.named_parameters()}
    assert found == {
        **dict.fromkeys(("0.weight", "3.weight"), 1e-3),
        **dict.fromkeys(("0.bias", "1.weight", "1.bias", "3.bias"), 0.0),
    }
    # Without gradients, only the decay changes weights.
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"0.weight", "3.weight"}
