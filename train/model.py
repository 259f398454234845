"""The pre-training network: one backbone, context matching and motion prediction (the paper).

Shape legend:
    B  samples of a batch
    C  channels, T  frames, H  rows, W  columns (in `BWCTHW` and `BWPD` the first W counts motion windows)
    P  positions of the predicted motion (rows times columns of the token map)
    D  features of an embedding, F  features of the backbone
"""

# ruff: noqa: N815 (carriers name the shapes of their tensors)

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from train.backbones import BACKBONE_NAMES, BackboneName, build_backbone, token_grid
from train.encoders import (
    LONGEST_MOTION_FRAMES,
    MOTION_INPUTS,
    ContextEncoder,
    MotionEncoder,
    MotionInput,
    motion_input_shape,
)
from train.predictor import MotionPredictor


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the pre-training network; the defaults are the paper's except for the motion input.

    Attributes:
        backbone: one of `BACKBONE_NAMES`.
        width: channels of the backbone's first stage.
        motion_input: "native" (dx, dy, validity at a quarter of the crop) or "paper" (dx, dy at the crop's size).
        clip_frames: frames of a clip, a multiple of 8.
        crop_size: side of a crop in pixels, a multiple of 4 from 32.
        motion_frames: frames of a motion window, 1 to 8.
        embedding_dim: features of the matched embeddings.
        head_hidden: hidden features of the four MLP heads.
        predictor_width: features of the predictor's tokens.
        predictor_heads: its attention heads; must divide its width.
        predictor_ff: hidden features of its feed-forward parts.
        encoder_layers: its layers over the clip's tokens.
        decoder_layers: its layers over predicted positions.
        dropout: its dropout probability, in [0, 1).
        encoder_width: channels of the first stage of the context and motion encoders; even.
        context_head: whether clips are matched to keyframes.
        motion_head: whether clips predict future motion; at least one of the two.

    Raises:
        ValueError: if a field is out of its range.
    """

    backbone: BackboneName = "r2plus1d_26"
    width: int = 64
    motion_input: MotionInput = "native"
    clip_frames: int = 16
    crop_size: int = 112
    motion_frames: int = 8
    embedding_dim: int = 512
    head_hidden: int = 2048
    predictor_width: int = 512
    predictor_heads: int = 8
    predictor_ff: int = 512
    encoder_layers: int = 2
    decoder_layers: int = 4
    dropout: float = 0.1
    encoder_width: int = 64
    context_head: bool = True
    motion_head: bool = True

    def __post_init__(self) -> None:
        for field, allowed in (("backbone", BACKBONE_NAMES), ("motion_input", MOTION_INPUTS)):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, not {getattr(self, field)!r}")
        for field in ("width", "embedding_dim", "head_hidden", "predictor_width", "predictor_heads", "predictor_ff"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, not {getattr(self, field)}")
        for field in ("encoder_layers", "decoder_layers"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, not {getattr(self, field)}")
        if self.clip_frames < 8 or self.clip_frames % 8:
            raise ValueError(f"clip_frames must be a positive multiple of 8, not {self.clip_frames}")
        token_grid(self.clip_frames, self.crop_size)
        if not 1 <= self.motion_frames <= LONGEST_MOTION_FRAMES:
            raise ValueError(f"motion_frames must be from 1 to {LONGEST_MOTION_FRAMES}, not {self.motion_frames}")
        if self.predictor_width % self.predictor_heads:
            raise ValueError(
                f"predictor_heads must divide predictor_width = {self.predictor_width}, not {self.predictor_heads}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if self.encoder_width < 2 or self.encoder_width % 2:
            raise ValueError(f"encoder_width must be even and at least 2, not {self.encoder_width}")
        if not (self.context_head or self.motion_head):
            raise ValueError("context_head and motion_head must not both be False")

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Extents (T, H, W) of the token map."""
        return token_grid(self.clip_frames, self.crop_size)

    @property
    def motion_shape(self) -> tuple[int, int, int, int]:
        """Extents (C, T, H, W) of one motion window."""
        return motion_input_shape(self.motion_input, frames=self.motion_frames, crop_size=self.crop_size)


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """Embeddings of a batch, all of unit length; None for a head that is off.

    Attributes:
        feature_BF: the backbone's pooled feature (not normalised), for monitoring and supervised losses.
        context_query_BD: embeddings of the clips.
        context_key_BD: embeddings of the keyframes.
        motion_query_BPD: predicted motion embeddings.
        motion_key_BWPD: embeddings of the motion windows, window 0 being the predicted one.

    Raises:
        ValueError: if a head is given by half or its shapes disagree.
    """

    feature_BF: Tensor
    context_query_BD: Tensor | None = None
    context_key_BD: Tensor | None = None
    motion_query_BPD: Tensor | None = None
    motion_key_BWPD: Tensor | None = None

    def __post_init__(self) -> None:
        context_query, context_key = self.context_query_BD, self.context_key_BD
        if (context_query is None) != (context_key is None):
            raise ValueError("context_query_BD and context_key_BD must be given together or not at all")
        if context_query is not None and context_key is not None and context_query.shape != context_key.shape:
            raise ValueError(
                f"context_key_BD must have the shape of context_query_BD, {tuple(context_query.shape)}, "
                f"not {tuple(context_key.shape)}"
            )
        query, key = self.motion_query_BPD, self.motion_key_BWPD
        if (query is None) != (key is None):
            raise ValueError("motion_query_BPD and motion_key_BWPD must be given together or not at all")
        if query is not None and key is not None and (key.ndim != 4 or query.shape != key[:, 0].shape):
            raise ValueError(
                f"motion_key_BWPD must hold windows of the shape of motion_query_BPD, {tuple(query.shape)}, "
                f"not {tuple(key.shape)}"
            )


class EmbeddingHead(nn.Module):
    """MLP head: linear, BatchNorm, ReLU, linear without bias, BatchNorm, unit length (the paper).

    Args:
        in_features: features read.
        hidden: features between.
        out_features: features D of the embedding.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out_features, bias=False),
            nn.BatchNorm1d(out_features),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., D); leading dimensions share the BatchNorm's statistics."""
        embedded_ND = self.layers(feature.flatten(0, -2))
        # A length in half precision would be off by up to a percent.
        return F.normalize(embedded_ND.float(), dim=-1).view(*feature.shape[:-1], -1)


class MotionHead(nn.Module):
    """Motion prediction: predictor, motion encoder and their two heads; attaches to any backbone's token map.

    Args:
        config: sizes; its backbone and its two switches are not read here.
        token_channels: channels of the token map that will be read.
    """

    def __init__(self, config: ModelConfig, *, token_channels: int) -> None:
        super().__init__()
        time, rows, columns = config.token_grid
        self.motion_shape = config.motion_shape
        self.predictor = MotionPredictor(
            token_channels=token_channels,
            source_count=time * rows * columns,
            target_count=rows * columns,
            width=config.predictor_width,
            heads=config.predictor_heads,
            hidden=config.predictor_ff,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            dropout=config.dropout,
        )
        self.encoder = MotionEncoder(motion_input=config.motion_input, width=config.encoder_width)
        self.query_head = EmbeddingHead(config.predictor_width, config.head_hidden, config.embedding_dim)
        self.key_head = EmbeddingHead(self.encoder.out_channels, config.head_hidden, config.embedding_dim)

    def forward_query(self, tokens_BCTHW: Tensor) -> Tensor:
        """Predicts embeddings (B, P, D) of the motion after the clips from their token map."""
        return self.query_head(self.predictor(tokens_BCTHW))  # type: ignore[no-any-return]

    def forward_key(self, motion_BWCTHW: Tensor) -> Tensor:
        """Embeds motion windows (B, W, C, T, H, W) position by position, as (B, W, P, D).

        Raises:
            ValueError: if a window does not have the configured shape.
        """
        if motion_BWCTHW.ndim != 6 or motion_BWCTHW.shape[2:] != self.motion_shape:
            raise ValueError(f"motion must be (B, W, *{self.motion_shape}), not {tuple(motion_BWCTHW.shape)}")
        map_NDTHW = self.encoder(motion_BWCTHW.flatten(0, 1))
        feature_NPD = map_NDTHW.flatten(2).transpose(1, 2)
        return self.key_head(feature_NPD).unflatten(0, motion_BWCTHW.shape[:2])  # type: ignore[no-any-return]

    def forward(self, tokens_BCTHW: Tensor, motion_BWCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the predicted embeddings (B, P, D) and those of the windows (B, W, P, D)."""
        return self.forward_query(tokens_BCTHW), self.forward_key(motion_BWCTHW)


class PretrainModel(nn.Module):
    """Backbone with context matching and motion prediction.

    Args:
        config: sizes and switches.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, width=config.width)
        channels = self.backbone.token_channels
        # A head that is off has no parameters: distributed training would wait for their gradients for ever.
        if config.context_head:
            self.context_encoder = ContextEncoder(width=config.encoder_width)
            self.context_query_head = EmbeddingHead(channels, config.head_hidden, config.embedding_dim)
            self.context_key_head = EmbeddingHead(
                self.context_encoder.out_channels, config.head_hidden, config.embedding_dim
            )
        if config.motion_head:
            self.motion = MotionHead(config, token_channels=channels)

    def forward_context_query(self, tokens_BCTHW: Tensor) -> Tensor:
        """Embeds what a clip shows, (B, D), from its token map averaged over time and space."""
        return self.context_query_head(tokens_BCTHW.mean(dim=(2, 3, 4)))  # type: ignore[no-any-return]

    def forward_context_key(self, keyframe_B31HW: Tensor) -> Tensor:
        """Embeds keyframes (B, 3, 1, H, W) as (B, D)."""
        return self.context_key_head(self.context_encoder(keyframe_B31HW))  # type: ignore[no-any-return]

    def forward_motion_query(self, tokens_BCTHW: Tensor) -> Tensor:
        """Predicts the embeddings (B, P, D) of the motion after the clip."""
        return self.motion.forward_query(tokens_BCTHW)

    def forward_motion_key(self, motion_BWCTHW: Tensor) -> Tensor:
        """Embeds motion windows (B, W, C, T, H, W) as (B, W, P, D)."""
        return self.motion.forward_key(motion_BWCTHW)

    def forward(
        self, clip_B3THW: Tensor, keyframe_B31HW: Tensor | None = None, motion_BWCTHW: Tensor | None = None
    ) -> ModelOutput:
        """Embeds a batch for both heads.

        Args:
            clip_B3THW: clips, normalised RGB.
            keyframe_B31HW: keyframes, normalised RGB; not read if the context head is off.
            motion_BWCTHW: motion windows (units: pixels / 10), the predicted one first; not read if the motion head
                is off.

        Raises:
            ValueError: if an input of a head that is on is missing, or a shape is not the configured one.
        """
        encoded = self.backbone(clip_B3THW)
        context_query_BD = context_key_BD = motion_query_BPD = motion_key_BWPD = None
        if self.config.context_head:
            if keyframe_B31HW is None:
                raise ValueError("keyframe_B31HW must be given: the context head is on")
            context_query_BD = self.forward_context_query(encoded.tokens_BCTHW)
            context_key_BD = self.forward_context_key(keyframe_B31HW)
        if self.config.motion_head:
            if motion_BWCTHW is None:
                raise ValueError("motion_BWCTHW must be given: the motion head is on")
            motion_query_BPD = self.forward_motion_query(encoded.tokens_BCTHW)
            motion_key_BWPD = self.forward_motion_key(motion_BWCTHW)
        return ModelOutput(
            feature_BF=encoded.pooled_BC,
            context_query_BD=context_query_BD,
            context_key_BD=context_key_BD,
            motion_query_BPD=motion_query_BPD,
            motion_key_BWPD=motion_key_BWPD,
        )
