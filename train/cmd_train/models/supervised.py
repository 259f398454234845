"""Supervised action recognition, optionally with motion prediction as an auxiliary task (as in the paper).

The motion head is that of pre-training; labels replace context matching.

Shape legend:
    B  clips of a batch
    K  classes
    C  channels, T  frames, H  rows, W  columns (in `BWCTHW` and `BWPD` the first W counts motion windows)
    P  positions of the predicted motion, D  features of an embedding
"""

from __future__ import annotations

from torch import Tensor, nn

from cmd_train.losses.outputs import ModelOutput, SupervisedOutput
from cmd_train.models.backbones import build_backbone
from cmd_train.models.config import ModelConfig
from cmd_train.models.heads import DirectionHead, MotionHead


class SupervisedModel(nn.Module):
    """Backbone, dropout and linear classifier; with ``config.motion_head`` also motion prediction.

    Args:
        config: backbone, motion head and dropout; the context head is ignored.
        classes: number of classes K.

    Raises:
        ValueError: there are fewer than two classes.
    """

    def __init__(self, config: ModelConfig, *, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes: must be at least 2, got {classes}")
        self.config = config
        self.backbone = build_backbone(config.backbone, width=config.width, shortcut=config.shortcut)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(self.backbone.feature_channels, classes)
        # Initialized last, so that all other weights are the same with and without the motion head.
        channels = self.backbone.token_channels
        self.motion: MotionHead | DirectionHead
        if config.predicts_directions:
            self.motion = DirectionHead(config, token_channels=channels)
        elif config.motion_head:
            self.motion = MotionHead(config, token_channels=channels)

    def forward(
        self, clip_B3THW: Tensor, motion_BWCTHW: Tensor | None = None, window_valid_BW: Tensor | None = None
    ) -> SupervisedOutput:
        """Classify clips and, in training with the motion head, predict their future motion.

        Args:
            clip_B3THW: clips, normalized RGB.
            motion_BWCTHW: motion windows, the predicted one first; required in training if the motion head is on, and
                ignored otherwise.
            window_valid_BW: whether each window exists (all if None).

        Raises:
            ValueError: motion is required but missing, or a shape does not match the configuration.
        """
        encoded = self.backbone(clip_B3THW)
        feature_BF = encoded.pooled_BC
        query_BPD = key_BWPD = direction_BKQHW = None
        if self.config.predicts_directions and self.training:
            direction_BKQHW = self.motion(encoded.tokens_BCTHW)
        elif self.config.motion_head and self.training:
            if motion_BWCTHW is None:
                raise ValueError("motion_BWCTHW: required in training, since the motion head is on")
            query_BPD, key_BWPD = self.motion(encoded.tokens_BCTHW, motion_BWCTHW, window_valid_BW)
        return SupervisedOutput(
            logits_BK=self.classifier(self.dropout(feature_BF)),
            embeddings=ModelOutput(
                feature_BF=feature_BF,
                motion_query_BPD=query_BPD,
                motion_key_BWPD=key_BWPD,
                direction_BKQHW=direction_BKQHW,
            ),
        )
