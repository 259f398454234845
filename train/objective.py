"""What the training loop optimises: turns a batch into a loss and numbers to log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from extract.schema import ShardHeader
from train.augment import AugmentedBatch, augment, draw_parameters
from train.batch import Batch
from train.config import TrainConfig
from train.contrast import InfoNCEOutput
from train.feature_spread import describe_features
from train.losses import pretrain_loss
from train.static_positions import mean_speed_px


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """One step's result.

    Attributes:
        loss: scalar, with gradient.
        metrics: names to scalar tensors, without gradient.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]


class PretrainObjective:
    """Context matching plus motion prediction (the paper's pre-training).

    Args:
        config: the training configuration.
        header: sizes of the shards that batches come from.

    Raises:
        ValueError: if both heads are off.
    """

    def __init__(self, config: TrainConfig, header: ShardHeader) -> None:
        if not (config.model.context_head or config.model.motion_head):
            raise ValueError("context_head and motion_head must not both be False")
        self._config = config
        self._header = header

    def __call__(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Augments a batch that lies on the training device, runs the model and computes both losses."""
        config = self._config
        parameters = draw_parameters(
            config.augment,
            batch.keys,
            seed=config.run.seed,
            windows=config.sampling.window_count,
            picture_size=(self._header.canonical_width, self._header.canonical_height),
        )
        inputs = augment(batch, parameters, config.augment, self._header)
        valid_BW = inputs.window_valid_BW
        enabled = config.run.precision == "bf16"
        with torch.autocast(batch.clip_u8_BTHWC.device.type, torch.bfloat16, enabled=enabled):
            output = model(inputs.clip_B3THW, inputs.keyframe_B31HW, inputs.motion_BWCTHW, valid_BW, batch.video_B)
        moving_BP = self._moving_positions(inputs)
        loss = pretrain_loss(
            output,
            valid_BW,
            context_weight=config.loss.context_weight,
            motion_weight=config.loss.motion_weight,
            temperature=config.loss.temperature,
            symmetric=config.loss.symmetric,
            query_valid_BP=moving_BP,
            rank_sizes=batch.rank_sizes,
        )
        metrics = {"loss": loss.total.detach(), **describe_features(output, valid_BW)}
        for name, part in (("context", loss.context), ("motion", loss.motion)):
            if part is not None:
                metrics |= _describe(name, part)
        if moving_BP is not None:
            metrics["motion_static_share"] = _share_of(~moving_BP, valid_BW[:, :1])
        return StepOutput(loss=loss.total, metrics=metrics)

    def _moving_positions(self, inputs: AugmentedBatch) -> Tensor | None:
        """(B, P) bool, positions fast enough to be asked for; None if all are."""
        model, least_px = self._config.model, self._config.loss.drop_static_px
        if least_px == 0 or not model.motion_head:
            return None
        _, *grid = model.token_grid
        clamp_px = self._config.augment.motion_clamp_px
        speed_px_BP = mean_speed_px(inputs.motion_BWCTHW[:, 0], (grid[0], grid[1]), clamp_px=clamp_px)
        return speed_px_BP >= least_px


def _share_of(chosen_BP: Tensor, among_B1: Tensor) -> Tensor:
    """Share of positions that are chosen, among the samples that count; 0 if none does."""
    return (chosen_BP & among_B1).sum() / (among_B1.sum() * chosen_BP.shape[1]).clamp(min=1)


def _describe(name: str, part: InfoNCEOutput) -> dict[str, Tensor]:
    return {
        f"{name}_loss": part.loss.detach(),
        f"{name}_top1": part.top1,
        f"{name}_top5": part.top5,
        f"{name}_candidates": part.candidates,
    }
