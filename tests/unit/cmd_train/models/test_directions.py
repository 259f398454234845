"""Direction head: shapes, the order of its scores, and the parameters of networks that predict directions."""

from __future__ import annotations

import itertools

import pytest
import torch

from cmd_train.models.config import ModelConfig
from cmd_train.models.heads import DirectionHead
from cmd_train.models.pretrain import PretrainModel
from cmd_train.models.supervised import SupervisedModel
from tests.unit.cmd_train.models.test_networks import SMALL, random_inputs

DIRECTIONS = {"motion_target": "directions", "shortcut": "average"}


@pytest.mark.parametrize("window", ["future", "clip"])
def test_directions_need_no_motion_encoder_and_leave_no_parameter_unused(window: str) -> None:
    config = ModelConfig(**{**SMALL.__dict__, **DIRECTIONS, "motion_window": window, "clip_frames": 16})
    model = PretrainModel(config)
    assert not any(
        ("encoder" in name and "context" not in name) or "predictor" in name for name, _ in model.named_parameters()
    )
    clip, keyframe, _ = random_inputs(config, samples=4)
    output = model(clip, keyframe)
    parts = 4 if window == "clip" else 2
    assert output.direction_BKQHW.shape == (4, 9, parts, 2, 2)
    assert output.motion_query_BPD is None
    # Random residual scales, so that no branch is inert.
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    output = model(clip, keyframe)
    loss = output.direction_BKQHW.square().sum() + (output.context_query_BD * output.context_key_BD.roll(1, 0)).sum()
    loss.backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_supervised_model_predicts_directions_in_training_only() -> None:
    config = ModelConfig(**{**SMALL.__dict__, **DIRECTIONS, "motion_window": "clip"})
    model = SupervisedModel(config, classes=3)
    clip = random_inputs(config)[0]
    assert model(clip).embeddings.direction_BKQHW.shape == (2, 9, 2, 2, 2)
    assert model.eval()(clip).embeddings.direction_BKQHW is None
    plain = SupervisedModel(ModelConfig(**{**config.__dict__, "motion_head": False}), classes=3)
    assert set(plain.state_dict()) < set(model.state_dict())


@pytest.mark.parametrize("window", ["future", "clip"])
def test_scores_are_ordered_by_class_part_and_position(window: str) -> None:
    """Part q of the window is part ``q % 3`` of time step ``q // 3``; with a future window, of the mean over time."""
    torch.manual_seed(0)
    config = ModelConfig(**{**SMALL.__dict__, **DIRECTIONS, "motion_window": window, "direction_parts": 3})
    head = DirectionHead(config, token_channels=5)
    tokens = torch.randn(2, 5, 2, 3, 4)
    found = head(tokens)
    steps = tokens if window == "clip" else tokens.mean(2, keepdim=True)
    assert found.shape == (2, 9, 3 * steps.shape[2], 3, 4)
    weight, bias = head.classifier.weight.view(3, 9, 5), head.classifier.bias.view(3, 9)
    for b, k, q, h, w in itertools.product(*map(range, found.shape)):
        expected = weight[q % 3, k] @ steps[b, :, q // 3, h, w] + bias[q % 3, k]
        assert found[b, k, q, h, w].item() == pytest.approx(expected.item(), abs=1e-5)
