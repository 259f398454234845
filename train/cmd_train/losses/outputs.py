"""Outputs of the networks, as the losses read them, and the result of a training step.

Shape legend:
    B  samples of a batch, W  motion windows of a sample, P  positions of the predicted motion
    D  features of an embedding, F  features of the backbone, K  classes
"""

# ruff: noqa: N815 (field names carry the shapes of their tensors)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """Embeddings of a batch, all of unit length; None for a head that is off.

    Attributes:
        feature_BF: pooled backbone feature (not normalized), for monitoring and supervised losses.
        context_query_BD: embeddings of the clips.
        context_key_BD: embeddings of the keyframes.
        motion_query_BPD: predicted motion embeddings.
        motion_key_BWPD: embeddings of the motion windows; window 0 is the predicted one.
        direction_BKQHW: scores of motion directions (classes K, parts Q of the window; H x W positions), if the motion
            head predicts directions.

    Raises:
        ValueError: queries and keys of a head are not given together, or their shapes do not match.
    """

    feature_BF: Tensor
    context_query_BD: Tensor | None = None
    context_key_BD: Tensor | None = None
    motion_query_BPD: Tensor | None = None
    motion_key_BWPD: Tensor | None = None
    direction_BKQHW: Tensor | None = None

    def __post_init__(self) -> None:
        context_query, context_key = self.context_query_BD, self.context_key_BD
        if (context_query is None) != (context_key is None):
            raise ValueError("context_query_BD and context_key_BD must be given together or not at all")
        if context_query is not None and context_key is not None and context_query.shape != context_key.shape:
            raise ValueError(
                f"context_key_BD: must have the shape of context_query_BD, {tuple(context_query.shape)}, "
                f"got {tuple(context_key.shape)}"
            )
        query, key = self.motion_query_BPD, self.motion_key_BWPD
        if (query is None) != (key is None):
            raise ValueError("motion_query_BPD and motion_key_BWPD must be given together or not at all")
        if query is not None and key is not None and (key.ndim != 4 or query.shape != key[:, 0].shape):
            raise ValueError(
                f"motion_key_BWPD: each window must have the shape of motion_query_BPD, {tuple(query.shape)}, "
                f"got {tuple(key.shape)}"
            )


@dataclass(frozen=True, kw_only=True)
class SupervisedOutput:
    """Output of a supervised model for a batch.

    Attributes:
        logits_BK: class scores.
        embeddings: pooled feature and, if motion was given, the embeddings that the motion loss compares.
    """

    logits_BK: Tensor
    embeddings: ModelOutput


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """Result of one training step.

    Attributes:
        loss: scalar, with gradient.
        metrics: scalar tensors by name, without gradient.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
