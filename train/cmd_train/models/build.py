"""Builds the networks that trainings start from."""

from __future__ import annotations

import torch

from cmd_train.models.config import ModelConfig
from cmd_train.models.pretrain import PretrainModel
from cmd_train.models.supervised import SupervisedModel


def build_model(config: ModelConfig, *, seed: int) -> PretrainModel:
    """The freshly initialised network; its weights depend on the seed alone."""
    torch.manual_seed(seed)
    return PretrainModel(config)


def build_classifier(config: ModelConfig, classes: int, *, seed: int) -> SupervisedModel:
    """The freshly initialised network with a classifier; its weights depend on the seed alone.

    With and without the motion head, all else starts from the same weights.
    """
    torch.manual_seed(seed)
    return SupervisedModel(config, classes=classes)
