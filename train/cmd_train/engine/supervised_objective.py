"""What fine-tuning optimises: turns a batch and its videos' labels into a loss and numbers to log.

Shape legend: B samples of a batch, V videos, W motion windows, P positions of the predicted motion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cmd_extract.schema import ShardHeader
from cmd_train.augment.apply import AugmentParameters, augment_clip, augment_motion, draw_parameters
from cmd_train.config import TrainConfig, check_finetuning
from cmd_train.data.batch import Batch
from cmd_train.engine.objective import describe_contrast
from cmd_train.losses.feature_spread import describe_features
from cmd_train.losses.pretrain import StepOutput
from cmd_train.losses.static_positions import moving_positions, static_share
from cmd_train.models.supervised import SupervisedLoss, SupervisedOutput, supervised_loss


class SupervisedObjective:
    """Cross-entropy and, with ``model.motion_head``, motion prediction as an auxiliary loss (the paper).

    Args:
        config: the training configuration.
        header: sizes of the shards that batches come from.
        class_V: the class of each video of the dataset, by its number there.
        classes: how many classes there are.

    Raises:
        ValueError: the context head is on, or clips are to be rotated away from their motion.
    """

    def __init__(self, config: TrainConfig, header: ShardHeader, class_V: Sequence[int], classes: int) -> None:
        check_finetuning(config)
        self._config = config
        self._header = header
        self._class_V = torch.tensor(class_V)
        self._classes = classes

    def __call__(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Augments a batch that lies on the training device, runs the model and computes the loss."""
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
        with torch.autocast(device.type, torch.bfloat16, enabled=config.run.precision == "bf16"):
            output: SupervisedOutput = model(clip_B3THW, motion_BWCTHW, batch.window_valid_BW)
        moving_BP = None
        if motion_BWCTHW is not None:
            moving_BP = moving_positions(
                motion_BWCTHW,
                config.model.token_grid[1:],
                least_px=config.loss.drop_static_px,
                clamp_px=config.augment.motion_clamp_px,
            )
        self._class_V = self._class_V.to(device)
        loss = supervised_loss(
            output,
            self._class_V[batch.video_B],
            batch.window_valid_BW,
            motion_weight=config.loss.motion_weight,
            temperature=config.loss.temperature,
            symmetric=config.loss.symmetric,
            own_video=config.loss.motion_own_video,
            own_place=config.loss.motion_own_place,
            query_valid_BP=moving_BP,
            rank_sizes=batch.rank_sizes,
        )
        metrics = self._describe(loss) | describe_features(output.embeddings, batch.window_valid_BW)
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
        return metrics if loss.motion is None else metrics | describe_contrast("motion", loss.motion)
