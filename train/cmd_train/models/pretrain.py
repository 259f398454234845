"""Pre-training network: a backbone with context matching and motion prediction (as in the paper).

Shape legend:
    B  samples of a batch
    C  channels, T  frames, H  rows, W  columns (in `BWCTHW` and `BWPD` the first W counts motion windows)
    P  positions of the predicted motion (rows times columns of the token map)
    D  features of an embedding, F  features of the backbone
"""

from __future__ import annotations

from torch import Tensor, nn

from cmd_train.losses.outputs import ModelOutput
from cmd_train.models.backbones import build_backbone
from cmd_train.models.config import ModelConfig
from cmd_train.models.encoders import ContextEncoder
from cmd_train.models.heads import DirectionHead, EmbeddingHead, MotionHead


class PretrainModel(nn.Module):
    """Backbone with context matching and motion prediction.

    Args:
        config: sizes and switches.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, width=config.width, shortcut=config.shortcut)
        channels = self.backbone.token_channels
        # A disabled head has no parameters: DistributedDataParallel would wait for their gradients indefinitely.
        if config.context_head:
            self.context_encoder = ContextEncoder(width=config.encoder_width)
            self.context_query_head = EmbeddingHead(channels, config.head_hidden, config.embedding_dim)
            self.context_key_head = EmbeddingHead(
                self.context_encoder.out_channels, config.head_hidden, config.embedding_dim
            )
        self.motion: MotionHead | DirectionHead
        if config.predicts_directions:
            self.motion = DirectionHead(config, token_channels=channels)
        elif config.motion_head:
            self.motion = MotionHead(config, token_channels=channels)

    def forward(
        self,
        clip_B3THW: Tensor,
        keyframe_B31HW: Tensor | None = None,
        motion_BWCTHW: Tensor | None = None,
        window_valid_BW: Tensor | None = None,
    ) -> ModelOutput:
        """Compute the embeddings of a batch for all heads that are on.

        Args:
            clip_B3THW: clips, normalized RGB.
            keyframe_B31HW: keyframes, normalized RGB; ignored if the context head is off.
            motion_BWCTHW: motion windows (see `crop_motion`), the predicted one first; ignored unless the motion head
                predicts features.
            window_valid_BW: whether each motion window exists (all if None).

        Raises:
            ValueError: an input of a head that is on is missing, or a shape does not match the configuration.
        """
        encoded = self.backbone(clip_B3THW)
        context_query_BD = context_key_BD = motion_query_BPD = motion_key_BWPD = direction_BKQHW = None
        if self.config.context_head:
            if keyframe_B31HW is None:
                raise ValueError("keyframe_B31HW: required, since the context head is on")
            context_query_BD = self.context_query_head(encoded.tokens_BCTHW.mean(dim=(2, 3, 4)))
            context_key_BD = self.context_key_head(self.context_encoder(keyframe_B31HW))
        if self.config.predicts_directions:
            direction_BKQHW = self.motion(encoded.tokens_BCTHW)
        elif self.config.motion_head:
            if motion_BWCTHW is None:
                raise ValueError("motion_BWCTHW: required, since the motion head is on")
            motion_query_BPD, motion_key_BWPD = self.motion(encoded.tokens_BCTHW, motion_BWCTHW, window_valid_BW)
        return ModelOutput(
            feature_BF=encoded.pooled_BC,
            context_query_BD=context_query_BD,
            context_key_BD=context_key_BD,
            motion_query_BPD=motion_query_BPD,
            motion_key_BWPD=motion_key_BWPD,
            direction_BKQHW=direction_BKQHW,
        )
