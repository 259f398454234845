"""Builds the network that a training starts from."""

from __future__ import annotations

import torch

from train.config import TrainConfig
from train.model import PretrainModel


def build_model(config: TrainConfig) -> PretrainModel:
    """The freshly initialised network; its weights depend on the seed alone."""
    torch.manual_seed(config.run.seed)
    return PretrainModel(config.model)
