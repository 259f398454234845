"""Construction of freshly initialized networks."""

from __future__ import annotations

import torch

from cmd_train.models.config import ModelConfig
from cmd_train.models.pretrain import PretrainModel
from cmd_train.models.supervised import SupervisedModel


def build_model(config: ModelConfig, *, seed: int) -> PretrainModel:
    """Build a pre-training network; its weights depend on the seed only."""
    torch.manual_seed(seed)
    return PretrainModel(config)


def build_classifier(config: ModelConfig, classes: int, *, seed: int) -> SupervisedModel:
    """Build a network with a classifier; its weights depend on the seed only.

    All other weights are the same with and without the motion head.
    """
    torch.manual_seed(seed)
    return SupervisedModel(config, classes=classes)
