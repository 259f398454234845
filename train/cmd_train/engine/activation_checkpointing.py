"""Activation checkpointing: blocks store only their inputs and recompute their activations in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from cmd_train.models.backbones import BiasedConvNorm
from cmd_train.models.predictor import TransformerLayer
from cmd_train.models.resnet import ResidualBlock

BLOCKS = (ResidualBlock, BiasedConvNorm, TransformerLayer)


def recompute_activations(model: nn.Module) -> None:
    """Enable activation checkpointing in all blocks of a network; results stay bit-identical."""
    for module in model.modules():
        if isinstance(module, BLOCKS):
            # An instance attribute shadows the method, and parameters keep their names.
            forward = partial(_forward_checkpointed, module, module.forward)
            module.forward = forward  # type: ignore[method-assign] # intended


def _forward_checkpointed(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not block.training:
        return forward(*inputs, **named)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _without_statistics(block)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """Keep BatchNorm from updating its running statistics a second time."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)
