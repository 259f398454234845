"""Video backbones: R(2+1)D-26, R3D-26, C3D and a small R(2+1)D-10, all with the paper's token map.

Shape legend:
    B  clips of a batch
    C  channels
    T  frames, later time steps of a feature map
    H  rows, W  columns
"""

# ruff: noqa: N802, N815 (carriers name the shapes of their tensors)

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmd_train.models.resnet import BlockKind, ConvKind, ResNetTrunk, TrunkSpec, initialise_convolutions

BackboneName = Literal["r2plus1d_26", "r3d_26", "c3d", "r2plus1d_10"]
BACKBONE_NAMES: tuple[BackboneName, ...] = get_args(BackboneName)

TOKEN_TIME_STRIDE = 8
TOKEN_SPACE_STRIDE = 16
_SMALLEST_CROP_PX = 32
_CROP_MULTIPLE_PX = 4


def token_grid(frames: int, crop_size: int) -> tuple[int, int, int]:
    """Returns the (T, H, W) extents of the token map, the same for every backbone.

    Args:
        frames: frames of the clip, a multiple of 8.
        crop_size: side of the square crop in pixels, a multiple of 4 and at least 32.

    Raises:
        ValueError: if a size is not allowed.
    """
    if frames < TOKEN_TIME_STRIDE or frames % TOKEN_TIME_STRIDE:
        raise ValueError(f"frames must be a positive multiple of {TOKEN_TIME_STRIDE}, not {frames}")
    if crop_size < _SMALLEST_CROP_PX or crop_size % _CROP_MULTIPLE_PX:
        raise ValueError(
            f"crop_size must be a multiple of {_CROP_MULTIPLE_PX} from {_SMALLEST_CROP_PX}, not {crop_size}"
        )
    side = -(-crop_size // TOKEN_SPACE_STRIDE)
    return frames // TOKEN_TIME_STRIDE, side, side


@dataclass(frozen=True, kw_only=True)
class BackboneOutput:
    """What a backbone makes of a batch of clips.

    Attributes:
        feature_BCTHW: the final map; its mean over time and space is the feature used downstream.
        tokens_BCTHW: the token map that both pre-training heads read.

    Raises:
        ValueError: if a map does not have five dimensions or the two disagree on the batch.
    """

    feature_BCTHW: Tensor
    tokens_BCTHW: Tensor

    def __post_init__(self) -> None:
        for field in ("feature_BCTHW", "tokens_BCTHW"):
            if getattr(self, field).ndim != 5:
                raise ValueError(f"{field} must have 5 dimensions, not shape {tuple(getattr(self, field).shape)}")
        if len(self.feature_BCTHW) != len(self.tokens_BCTHW):
            raise ValueError(
                f"tokens_BCTHW must hold {len(self.feature_BCTHW)} clips as feature_BCTHW, not {len(self.tokens_BCTHW)}"
            )

    @property
    def pooled_BC(self) -> Tensor:
        """The final map averaged over time and space."""
        return self.feature_BCTHW.mean(dim=(2, 3, 4))


class Backbone(nn.Module, ABC):
    """A network from clips to a feature map and a token map.

    Attributes:
        feature_channels: channels of the final map.
        token_channels: channels of the token map.
    """

    feature_channels: int
    token_channels: int

    @abstractmethod
    def forward(self, clip_BCTHW: Tensor) -> BackboneOutput:
        """Maps clips (B, 3, T, H, W), normalised RGB, to their feature and token maps.

        Raises:
            ValueError: if the clips' size is not allowed (see `token_grid`).
        """


def _check_clip(clip_BCTHW: Tensor) -> None:
    if clip_BCTHW.ndim != 5 or clip_BCTHW.shape[1] != 3 or clip_BCTHW.shape[3] != clip_BCTHW.shape[4]:
        raise ValueError(f"clip must be (B, 3, T, H, W) with H = W, not {tuple(clip_BCTHW.shape)}")
    token_grid(clip_BCTHW.shape[2], clip_BCTHW.shape[3])


class ResNetBackbone(Backbone):
    """A residual backbone; its token map joins the two last stages as the paper does.

    Args:
        kind: "3d" or "2plus1d" convolutions.
        block: kind of residual blocks.
        depths: blocks a stage.
        width: channels of the first stage.
    """

    def __init__(self, *, kind: ConvKind, block: BlockKind, depths: tuple[int, int, int, int], width: int = 64) -> None:
        super().__init__()
        halve = (2, 2, 2)
        self.trunk = ResNetTrunk(
            TrunkSpec(
                kind=kind,
                block=block,
                depths=depths,
                in_channels=3,
                width=width,
                stem_kernel=(3, 7, 7),
                stem_stride=(1, 2, 2),
                max_pool=True,
                stage_strides=((1, 1, 1), halve, halve, halve),
            )
        )
        self.feature_channels = self.token_channels = self.trunk.spec.stage_channels[-1]

    def forward(self, clip_BCTHW: Tensor) -> BackboneOutput:
        """Maps clips (B, 3, T, H, W) to maps at strides (8, 32, 32) and, for the tokens, (8, 16, 16)."""
        _check_clip(clip_BCTHW)
        *_, stage3_BCTHW, stage4_BCTHW = self.trunk(clip_BCTHW)
        return BackboneOutput(feature_BCTHW=stage4_BCTHW, tokens_BCTHW=join_stages(stage3_BCTHW, stage4_BCTHW))


def join_stages(stage3_BCTHW: Tensor, stage4_BCTHW: Tensor) -> Tensor:
    """Builds the token map: pairs of stage-3 time steps side by side on channels, plus stage 4 brought to their size.

    Args:
        stage3_BCTHW: (B, C, 2T, H, W).
        stage4_BCTHW: (B, 2C, T, H', W').

    Returns:
        (B, 2C, T, H, W).
    """
    pairs_BCTHW = torch.cat([stage3_BCTHW[:, :, 0::2], stage3_BCTHW[:, :, 1::2]], dim=1)
    return pairs_BCTHW + F.interpolate(stage4_BCTHW, size=pairs_BCTHW.shape[2:], mode="nearest")


class BiasedConvNorm(nn.Module):
    """C3D's layer: a 3x3x3 convolution with bias and its BatchNorm.

    Args:
        in_channels: channels read.
        out_channels: channels written.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm3d(out_channels)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Maps (B, in, T, H, W) to (B, out, T, H, W)."""
        return self.norm(self.conv(video_BCTHW))  # type: ignore[no-any-return] # modules give Any


class C3DBackbone(Backbone):
    """C3D without its fully connected layers; its final map is its token map.

    Args:
        width: channels of the first layer.
    """

    # Name of each layer, its width as a multiple of the first one's, and the pool after it (also its stride).
    LAYERS = (
        ("1", 1, (1, 2, 2)),
        ("2", 2, (2, 2, 2)),
        ("3a", 4, None),
        ("3b", 4, (2, 2, 2)),
        ("4a", 8, None),
        ("4b", 8, (2, 2, 2)),
        ("5a", 8, None),
        ("5b", 8, None),
    )

    def __init__(self, *, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        in_channels = 3
        for name, multiple, _ in self.LAYERS:
            self.layers[name] = BiasedConvNorm(in_channels, width * multiple)
            in_channels = width * multiple
        self.feature_channels = self.token_channels = in_channels
        initialise_convolutions(self)

    def forward(self, clip_BCTHW: Tensor) -> BackboneOutput:
        """Maps clips (B, 3, T, H, W) to a map at strides (8, 16, 16)."""
        _check_clip(clip_BCTHW)
        current_BCTHW = clip_BCTHW
        for name, _, pool in self.LAYERS:
            current_BCTHW = F.relu(self.layers[name](current_BCTHW))
            if pool is not None:
                # Odd sizes round up, as strided convolutions do, so that every backbone has the same token grid.
                current_BCTHW = F.max_pool3d(current_BCTHW, pool, pool, ceil_mode=True)
        return BackboneOutput(feature_BCTHW=current_BCTHW, tokens_BCTHW=current_BCTHW)


def build_backbone(name: str, *, width: int = 64) -> Backbone:
    """Builds a backbone by name.

    Args:
        name: one of `BACKBONE_NAMES`.
        width: channels of the first stage (64 in the paper); all others scale with it.

    Raises:
        ValueError: if the name is unknown or the width not positive.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, not {width}")
    if name == "r2plus1d_26":
        return ResNetBackbone(kind="2plus1d", block="bottleneck", depths=(2, 2, 2, 2), width=width)
    if name == "r3d_26":
        return ResNetBackbone(kind="3d", block="bottleneck", depths=(2, 2, 2, 2), width=width)
    if name == "r2plus1d_10":
        return ResNetBackbone(kind="2plus1d", block="basic", depths=(1, 1, 1, 1), width=width)
    if name == "c3d":
        return C3DBackbone(width=width)
    raise ValueError(f"backbone must be one of {', '.join(BACKBONE_NAMES)}, not {name!r}")
