"""Sizes and switches of the networks; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from cmd_extract.system.validation import require, require_choice, require_range
from cmd_train.augment.config import MOTION_INPUTS, MotionInput, motion_input_shape
from cmd_train.data.sampling import MOTION_WINDOWS, MotionWindowKind
from cmd_train.losses.config import MOTION_TARGETS, MotionTarget

BackboneName = Literal["r2plus1d_26", "r3d_26", "c3d", "r2plus1d_10"]
BACKBONE_NAMES: tuple[BackboneName, ...] = get_args(BackboneName)
ShortcutKind = Literal["strided", "average"]
SHORTCUTS: tuple[ShortcutKind, ...] = get_args(ShortcutKind)

TOKEN_TIME_STRIDE = 8
TOKEN_SPACE_STRIDE = 16
MIN_CROP_PX = 32
CROP_MULTIPLE_PX = 4
MAX_MOTION_FRAMES = 8


def token_grid(frames: int, crop_size: int) -> tuple[int, int, int]:
    """Return the size (T, H, W) of the token map, which is the same for all backbones.

    Args:
        frames: frames per clip, a multiple of 8.
        crop_size: side of the square crop in pixels, a multiple of 4 and at least 32.

    Raises:
        ValueError: a size is not supported.
    """
    require(
        frames > 0 and frames % TOKEN_TIME_STRIDE == 0,
        f"clip_frames: must be a positive multiple of {TOKEN_TIME_STRIDE}, got {frames}",
    )
    require(
        crop_size >= MIN_CROP_PX and crop_size % CROP_MULTIPLE_PX == 0,
        f"crop_size: must be a multiple of {CROP_MULTIPLE_PX} and at least {MIN_CROP_PX}, got {crop_size}",
    )
    side = -(-crop_size // TOKEN_SPACE_STRIDE)
    return frames // TOKEN_TIME_STRIDE, side, side


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of a network; the defaults are the paper's except for the motion input.

    Attributes:
        backbone: one of `BACKBONE_NAMES`.
        width: channels of the backbone's first stage.
        shortcut: how the shortcuts of residual blocks of the backbone and the motion encoder reduce the resolution:
            "strided" (1x1x1 convolution with stride, as published) or "average" (average pooling before a 1x1x1
            convolution of stride 1, ResNet-D). See `models.resnet.ResidualBlock`.
        motion_input: "native" (dx, dy and validity at a quarter of the crop resolution) or "paper" (dx and dy at crop
            resolution).
        clip_frames: frames per clip, a multiple of 8.
        crop_size: side of the crop in pixels, a multiple of 4 and at least 32.
        motion_frames: frames per motion window, 1 to 8.
        embedding_dim: dimension of the embeddings that the losses compare.
        head_hidden: hidden features of the four MLP heads.
        predictor_width: features per token of the motion predictor.
        predictor_heads: attention heads of the predictor; must divide its width.
        predictor_ff: hidden features of the predictor's feed-forward networks.
        encoder_layers: predictor layers over the clip tokens.
        decoder_layers: predictor layers over the predicted positions.
        dropout: dropout probability of the predictor, in [0, 1).
        encoder_width: channels of the first stage of the context and motion encoders; even.
        context_head: match clips to keyframes.
        motion_head: predict future motion from clips. With both heads off, the network is a bare backbone, which
            cannot be pre-trained but can hold imported weights.
        motion_target: what the motion head predicts: "features" of the motion, learned and compared contrastively (the
            paper), or quantized "directions" of the mean motion vectors, see `losses.directions`.
        motion_window: "future" or "clip", see `SamplingConfig`; with "clip", directions are predicted at each time step
            of the token map, otherwise from its mean over time.
        directions: number of directions; "still" is an additional class.
        direction_parts: equal parts of the motion window whose directions are predicted separately; with
            `motion_window="clip"` parts per time step of the token map.
        classifier_dropout: dropout probability before the classifier, in [0, 1). Used by fine-tuning only.

    Raises:
        ValueError: a field is out of range.
    """

    backbone: BackboneName = "r2plus1d_26"
    width: int = 64
    shortcut: ShortcutKind = "strided"
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
    motion_target: MotionTarget = "features"
    motion_window: MotionWindowKind = "future"
    directions: int = 8
    direction_parts: int = 2
    classifier_dropout: float = 0.3

    def __post_init__(self) -> None:
        require_choice(self, "backbone", BACKBONE_NAMES)
        require_choice(self, "motion_input", MOTION_INPUTS)
        require_choice(self, "shortcut", SHORTCUTS)
        require_choice(self, "motion_target", MOTION_TARGETS)
        require_choice(self, "motion_window", MOTION_WINDOWS)
        require_range(self, "directions", ge=2)
        require_range(self, "direction_parts", ge=1)
        require_range(self, "width", "embedding_dim", "head_hidden", "encoder_layers", "decoder_layers", ge=1)
        require_range(self, "predictor_width", "predictor_heads", "predictor_ff", ge=1)
        require_range(self, "motion_frames", ge=1, le=MAX_MOTION_FRAMES)
        require_range(self, "dropout", "classifier_dropout", ge=0, lt=1)
        token_grid(self.clip_frames, self.crop_size)
        require(
            self.predictor_width % self.predictor_heads == 0,
            f"predictor_heads: must divide predictor_width = {self.predictor_width}, got {self.predictor_heads}",
        )
        require(
            self.encoder_width >= 2 and self.encoder_width % 2 == 0,
            f"encoder_width: must be even and at least 2, got {self.encoder_width}",
        )

    @property
    def predicts_directions(self) -> bool:
        """Whether the motion head is on and predicts directions."""
        return self.motion_head and self.motion_target == "directions"

    @property
    def window_parts(self) -> int:
        """Parts of a motion window whose directions are predicted separately."""
        return self.direction_parts * (self.token_grid[0] if self.motion_window == "clip" else 1)

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Size (T, H, W) of the token map."""
        return token_grid(self.clip_frames, self.crop_size)

    @property
    def motion_shape(self) -> tuple[int, int, int, int]:
        """Shape (C, T, H, W) of a motion window."""
        return motion_input_shape(self.motion_input, frames=self.motion_frames, crop_size=self.crop_size)
