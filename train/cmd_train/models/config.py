"""Sizes and switches of the pre-training network."""

from __future__ import annotations

from dataclasses import dataclass

from cmd_train.models.backbones import BACKBONE_NAMES, BackboneName, token_grid
from cmd_train.models.encoders import LONGEST_MOTION_FRAMES, MOTION_INPUTS, MotionInput, motion_input_shape


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
        motion_head: whether clips predict future motion. With both off the network is a backbone alone, which cannot be
            pre-trained, but can hold imported weights.
        context_queue: keyframes' embeddings of earlier batches that serve as further negatives; 0 = none, the paper's.
            Helps where batches are small.
        queue_momentum: share of its weights that the slow encoder of those embeddings keeps at each step, in [0, 1).
        classifier_dropout: probability of dropping a pooled feature before the classifier, in [0, 1); fine-tuning
            reads it, pre-training has no classifier.

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
    context_queue: int = 0
    queue_momentum: float = 0.99
    classifier_dropout: float = 0.3

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
        for field in ("dropout", "classifier_dropout"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise ValueError(f"{field} must be in [0, 1), not {getattr(self, field)}")
        if self.encoder_width < 2 or self.encoder_width % 2:
            raise ValueError(f"encoder_width must be even and at least 2, not {self.encoder_width}")
        if self.context_queue < 0 or (self.context_queue and not self.context_head):
            raise ValueError(f"context_queue must be 0, or positive with context_head, not {self.context_queue}")
        if not 0.0 <= self.queue_momentum < 1.0:
            raise ValueError(f"queue_momentum must be in [0, 1), not {self.queue_momentum}")

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Extents (T, H, W) of the token map."""
        return token_grid(self.clip_frames, self.crop_size)

    @property
    def motion_shape(self) -> tuple[int, int, int, int]:
        """Extents (C, T, H, W) of one motion window."""
        return motion_input_shape(self.motion_input, frames=self.motion_frames, crop_size=self.crop_size)
