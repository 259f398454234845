"""Alignment and uniformity of both heads' embeddings, computed on the rank's own samples.

A loss can fall while embeddings collapse; these metrics reveal it: alignment measures how close matching pairs are,
uniformity how spread out all embeddings are (Wang & Isola, 2020).

Shape legend:
    B  samples of a batch, W  motion windows of a sample, P  positions of the predicted motion
    N  embeddings
    D  features of an embedding
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmd_train.losses.contrast import alignment, uniformity
from cmd_train.losses.outputs import ModelOutput

MAX_EMBEDDINGS = 256
"""Maximum number of embeddings for uniformity, which compares all pairs; more are subsampled at equal spacing."""


@torch.no_grad()
def describe_features(
    output: ModelOutput, window_valid_BW: Tensor | None, valid_B: Tensor | None = None
) -> dict[str, Tensor]:
    """Compute the alignment of queries and keys, and the uniformity of both, for each head that is on.

    Args:
        output: embeddings of this rank's batch.
        window_valid_BW: whether each motion window exists; None only without motion embeddings.
        valid_B: samples that count (all if None); the others must have no motion windows.

    Returns:
        Scalars named ``context_`` or ``motion_`` plus ``alignment``, ``query_uniformity`` or ``key_uniformity``.
        Motion keys are those of the predicted window.
    """
    metrics: dict[str, Tensor] = {}
    if output.context_query_BD is not None and output.context_key_BD is not None:
        counted_B = torch.ones_like(output.context_query_BD[:, 0], dtype=torch.bool) if valid_B is None else valid_B
        metrics |= _describe("context", output.context_query_BD, output.context_key_BD, counted_B)
    if output.motion_query_BPD is not None and output.motion_key_BWPD is not None and window_valid_BW is not None:
        query_ND, key_ND = output.motion_query_BPD.flatten(0, 1), output.motion_key_BWPD[:, 0].flatten(0, 1)
        valid_N = window_valid_BW[:, 0].bool().repeat_interleave(output.motion_query_BPD.shape[1])
        metrics |= _describe("motion", query_ND, key_ND, valid_N)
    return metrics


def _describe(head: str, query_ND: Tensor, key_ND: Tensor, valid_N: Tensor) -> dict[str, Tensor]:
    count = min(len(query_ND), MAX_EMBEDDINGS)
    chosen = torch.arange(count, device=query_ND.device) * len(query_ND) // count
    metrics = {f"{head}_alignment": alignment(query_ND, key_ND, valid_N)}
    if count >= 2:
        metrics[f"{head}_query_uniformity"] = uniformity(query_ND[chosen], valid_N[chosen])
        metrics[f"{head}_key_uniformity"] = uniformity(key_ND[chosen], valid_N[chosen])
    return metrics
