"""Objective of fine-tuning: computes the loss and metrics of a batch and its labels.

Shape legend: B samples, V videos, W motion windows, P positions of the predicted motion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cmd_extract.schema import ShardHeader
from cmd_train.augment.apply import augment_clip, augment_motion
from cmd_train.augment.parameters import AugmentParameters, draw_parameters
from cmd_train.config import TrainConfig, check_finetuning
from cmd_train.data.batch import Batch
from cmd_train.engine.objective import describe_contrast, describe_directions, motion_supervision
from cmd_train.engine.precision import autocast
from cmd_train.losses.feature_spread import describe_features
from cmd_train.losses.outputs import StepOutput, SupervisedOutput
from cmd_train.losses.static_positions import static_share
from cmd_train.losses.supervised import SupervisedLoss, supervised_loss


class SupervisedObjective:
    """Cross-entropy plus, with ``model.motion_head``, motion prediction as an auxiliary loss, as in the paper.

    Args:
        config: configuration of the run.
        header: header of the shards that batches come from.
        class_V: class number of each video of the dataset.
        classes: number of classes.

    Raises:
        ValueError: fine-tuning does not support the settings; see ``check_finetuning``.
    """

    def __init__(self, config: TrainConfig, header: ShardHeader, class_V: Sequence[int], classes: int) -> None:
        check_finetuning(config)
        self._config = config
        self._header = header
        self._class_V = torch.tensor(class_V)
        self._classes = classes

    def __call__(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Augment a batch on its device, run the model and compute the loss."""
        config = self._config
        device = batch.clip_u8_BTHWC.device
        parameters = draw_parameters(
            config.augment,
            batch.keys,
            seed=config.run.seed,
            windows=config.sampling.window_count,
            picture_size=(self._header.canonical_width, self._header.canonical_height),
        )
        clip_B3THW = augment_clip(batch.clip_u8_BTHWC, parameters, config.augment)
        motion_BWCTHW = self._motion(batch, parameters)
        with autocast(config.run.precision, device):
            output: SupervisedOutput = model(clip_B3THW, motion_BWCTHW, batch.window_valid_BW)
        moving_BP = targets = None
        if motion_BWCTHW is not None:
            moving_BP, targets = motion_supervision(motion_BWCTHW, config)
        self._class_V = self._class_V.to(device)
        loss = supervised_loss(
            output,
            self._class_V[batch.video_B],
            batch.window_valid_BW,
            config.loss,
            query_valid_BP=moving_BP,
            targets=targets,
            valid_B=batch.valid_B,
        )
        metrics = self._describe(loss) | describe_features(output.embeddings, batch.window_valid_BW, batch.valid_B)
        if moving_BP is not None:
            metrics["motion_static_share"] = static_share(moving_BP, batch.window_valid_BW)
        return StepOutput(loss=loss.total, metrics=metrics)

    def _motion(self, batch: Batch, parameters: AugmentParameters) -> Tensor | None:
        if not self._config.model.motion_head:
            return None
        return augment_motion(
            batch.motion_quarter_px_BWTCHW, batch.motion_valid_BWTHW, parameters, self._config.augment, self._header
        )

    def _describe(self, loss: SupervisedLoss) -> dict[str, Tensor]:
        metrics = {
            "loss": loss.total.detach(),
            "classification_loss": loss.classification.detach(),
            "classification_top1": loss.top1,
            "classification_candidates": torch.full_like(loss.top1, self._classes),
        }
        if loss.directions is not None:
            metrics |= describe_directions(loss.directions)
        return metrics if loss.motion is None else metrics | describe_contrast("motion", loss.motion)
