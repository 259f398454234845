"""Objective of pre-training: computes the loss and metrics of a batch."""

from __future__ import annotations

from torch import Tensor, nn

from cmd_extract.schema import ShardHeader
from cmd_train.augment.apply import augment
from cmd_train.augment.parameters import draw_parameters
from cmd_train.config import TrainConfig
from cmd_train.data.batch import Batch
from cmd_train.engine.precision import autocast
from cmd_train.losses.contrast import InfoNCEOutput
from cmd_train.losses.directions import DirectionLoss, DirectionTargets, direction_targets
from cmd_train.losses.feature_spread import describe_features
from cmd_train.losses.outputs import StepOutput
from cmd_train.losses.pretrain import pretrain_loss
from cmd_train.losses.static_positions import moving_positions, static_share


class PretrainObjective:
    """Context matching plus motion prediction, the paper's pre-training.

    Args:
        config: configuration of the run.
        header: header of the shards that batches come from.

    Raises:
        ValueError: both heads are off.
    """

    def __init__(self, config: TrainConfig, header: ShardHeader) -> None:
        if not (config.model.context_head or config.model.motion_head):
            raise ValueError("model.context_head, model.motion_head: at least one must be True for pre-training")
        self._config = config
        self._header = header

    def __call__(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Augment a batch on its device, run the model and compute both losses."""
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
        with autocast(config.run.precision, batch.clip_u8_BTHWC.device):
            output = model(inputs.clip_B3THW, inputs.keyframe_B31HW, inputs.motion_BWCTHW, valid_BW)
        moving_BP, targets = motion_supervision(inputs.motion_BWCTHW, config)
        loss = pretrain_loss(
            output,
            valid_BW,
            config.loss,
            query_valid_BP=moving_BP,
            targets=targets,
            valid_B=batch.valid_B,
        )
        metrics = {"loss": loss.total.detach(), **describe_features(output, valid_BW, batch.valid_B)}
        for name, part in (("context", loss.context), ("motion", loss.motion)):
            if part is not None:
                metrics |= describe_contrast(name, part)
        if loss.directions is not None:
            metrics |= describe_directions(loss.directions)
        if moving_BP is not None:
            metrics["motion_static_share"] = static_share(moving_BP, valid_BW)
        return StepOutput(loss=loss.total, metrics=metrics)


def describe_contrast(name: str, part: InfoNCEOutput) -> dict[str, Tensor]:
    """Return loss, top-1, top-5 and number of candidates of a head, for logging."""
    return {
        f"{name}_loss": part.loss.detach(),
        f"{name}_top1": part.top1,
        f"{name}_top5": part.top5,
        f"{name}_candidates": part.candidates,
    }


def motion_supervision(motion_BWCTHW: Tensor, config: TrainConfig) -> tuple[Tensor | None, DirectionTargets | None]:
    """Return what the motion loss needs besides embeddings or scores.

    Args:
        motion_BWCTHW: motion windows of the samples, the predicted one first.
        config: configuration of the run.

    Returns:
        Positions (B, P) that are queries, None for all; and the directions to predict, None if features are predicted.
    """
    grid, clamp_px = config.model.token_grid[1:], config.augment.motion_clamp_px
    if config.model.predicts_directions:
        return None, direction_targets(
            motion_BWCTHW[:, 0],
            grid,
            parts=config.model.window_parts,
            directions=config.model.directions,
            still_px=config.loss.still_px,
            clamp_px=clamp_px,
        )
    min_px = config.loss.drop_static_px if config.model.motion_head else 0.0
    return moving_positions(motion_BWCTHW, grid, min_px=min_px, clamp_px=clamp_px), None


def describe_directions(part: DirectionLoss) -> dict[str, Tensor]:
    """Return the loss, the accuracy at moving positions, the majority class and the moving share, for logging."""
    return {
        "motion_loss": part.loss.detach(),
        "motion_top1": part.top1,
        "motion_majority": part.majority,
        "motion_moving_share": part.moving,
    }
