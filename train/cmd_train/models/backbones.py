"""Video backbones R(2+1)D-26, R3D-26, C3D and a small R(2+1)D-10, all with the paper's token map.

Shape legend:
    B  clips of a batch
    C  channels
    T  frames, later time steps of a feature map
    H  rows, W  columns
"""

# ruff: noqa: N802, N815 (field and property names carry the shapes of their tensors)

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmd_train.models.config import BACKBONE_NAMES, ShortcutKind, token_grid
from cmd_train.models.resnet import BlockKind, ConvKind, ResNetTrunk, TrunkSpec, initialize_convolutions


@dataclass(frozen=True, kw_only=True)
class BackboneOutput:
    """Output of a backbone for a batch of clips.

    Attributes:
        feature_BCTHW: final feature map; its mean over time and space is the feature used downstream.
        tokens_BCTHW: token map, the input of both pre-training heads.

    Raises:
        ValueError: a map does not have five dimensions, or their batch sizes differ.
    """

    feature_BCTHW: Tensor
    tokens_BCTHW: Tensor

    def __post_init__(self) -> None:
        for field in ("feature_BCTHW", "tokens_BCTHW"):
            if getattr(self, field).ndim != 5:
                raise ValueError(f"{field}: must have 5 dimensions, got shape {tuple(getattr(self, field).shape)}")
        # Not len(): an exported network would accept a single batch size.
        batch, other = self.feature_BCTHW.shape[0], self.tokens_BCTHW.shape[0]
        if batch != other:
            raise ValueError(f"tokens_BCTHW: must have the batch size of feature_BCTHW, {batch}, got {other}")

    @property
    def pooled_BC(self) -> Tensor:
        """Final feature map averaged over time and space."""
        return self.feature_BCTHW.mean(dim=(2, 3, 4))


# Without this, torch.export rejects the output.
torch.export.register_dataclass(BackboneOutput)


class Backbone(nn.Module, ABC):
    """Network that maps clips to a feature map and a token map.

    Attributes:
        feature_channels: channels of the final feature map.
        token_channels: channels of the token map.
    """

    feature_channels: int
    token_channels: int

    @abstractmethod
    def forward(self, clip_BCTHW: Tensor) -> BackboneOutput:
        """Map clips (B, 3, T, H, W), normalized RGB, to their feature and token maps.

        Raises:
            ValueError: the clip size is not supported (see `token_grid`).
        """


def _check_clip(clip_BCTHW: Tensor) -> None:
    if clip_BCTHW.ndim != 5 or clip_BCTHW.shape[1] != 3 or clip_BCTHW.shape[3] != clip_BCTHW.shape[4]:
        raise ValueError(f"clip_BCTHW: must have shape (B, 3, T, H, W) with H = W, got {tuple(clip_BCTHW.shape)}")
    token_grid(clip_BCTHW.shape[2], clip_BCTHW.shape[3])


class ResNetBackbone(Backbone):
    """Residual backbone whose token map combines the last two stages, as in the paper.

    Args:
        kind: "3d" or "2plus1d" convolutions.
        block: kind of residual block.
        depths: blocks per stage.
        width: channels of the first stage.
        shortcut: kind of the shortcuts, see `models.resnet.ResidualBlock`.
    """

    def __init__(
        self,
        *,
        kind: ConvKind,
        block: BlockKind,
        depths: tuple[int, int, int, int],
        width: int = 64,
        shortcut: ShortcutKind = "strided",
    ) -> None:
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
                shortcut=shortcut,
            )
        )
        self.feature_channels = self.token_channels = self.trunk.spec.stage_channels[-1]

    def forward(self, clip_BCTHW: Tensor) -> BackboneOutput:
        """Map clips (B, 3, T, H, W) to a feature map at stride (8, 32, 32) and a token map at stride (8, 16, 16)."""
        _check_clip(clip_BCTHW)
        *_, stage3_BCTHW, stage4_BCTHW = self.trunk(clip_BCTHW)
        return BackboneOutput(feature_BCTHW=stage4_BCTHW, tokens_BCTHW=join_stages(stage3_BCTHW, stage4_BCTHW))


def join_stages(stage3_BCTHW: Tensor, stage4_BCTHW: Tensor) -> Tensor:
    """Build the token map: pairs of stage-3 time steps concatenated on channels, plus upsampled stage 4.

    Args:
        stage3_BCTHW: (B, C, 2T, H, W).
        stage4_BCTHW: (B, 2C, T, H', W').

    Returns:
        (B, 2C, T, H, W).
    """
    pairs_BCTHW = torch.cat([stage3_BCTHW[:, :, 0::2], stage3_BCTHW[:, :, 1::2]], dim=1)
    return pairs_BCTHW + F.interpolate(stage4_BCTHW, size=pairs_BCTHW.shape[2:], mode="nearest")


class BiasedConvNorm(nn.Module):
    """Layer of C3D: a 3x3x3 convolution with bias, followed by BatchNorm.

    Args:
        in_channels: input channels.
        out_channels: output channels.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm3d(out_channels)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Map (B, in, T, H, W) to (B, out, T, H, W)."""
        return self.norm(self.conv(video_BCTHW))  # type: ignore[no-any-return] # modules return Any


class C3DBackbone(Backbone):
    """C3D without its fully connected layers; its final feature map is also its token map.

    Args:
        width: channels of the first layer.
    """

    # Name of each layer, its width relative to the first layer, and the kernel size and stride of the pool after it.
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
        initialize_convolutions(self)

    def forward(self, clip_BCTHW: Tensor) -> BackboneOutput:
        """Map clips (B, 3, T, H, W) to a feature map at stride (8, 16, 16)."""
        _check_clip(clip_BCTHW)
        current_BCTHW = clip_BCTHW
        for name, _, pool in self.LAYERS:
            current_BCTHW = F.relu(self.layers[name](current_BCTHW))
            if pool is not None:
                # Round odd sizes up, as strided convolutions do, so that all backbones have the same token grid.
                current_BCTHW = F.max_pool3d(current_BCTHW, pool, pool, ceil_mode=True)
        return BackboneOutput(feature_BCTHW=current_BCTHW, tokens_BCTHW=current_BCTHW)


def build_backbone(name: str, *, width: int = 64, shortcut: ShortcutKind = "strided") -> Backbone:
    """Build a backbone by name.

    Args:
        name: one of `BACKBONE_NAMES`.
        width: channels of the first stage (64 in the paper); all other stages scale with it.
        shortcut: kind of the shortcuts of residual backbones; C3D has none.

    Raises:
        ValueError: the name is unknown or the width is not positive.
    """
    if width < 1:
        raise ValueError(f"width: must be at least 1, got {width}")
    bottleneck, basic = (2, 2, 2, 2), (1, 1, 1, 1)
    if name == "r2plus1d_26":
        return ResNetBackbone(kind="2plus1d", block="bottleneck", depths=bottleneck, width=width, shortcut=shortcut)
    if name == "r3d_26":
        return ResNetBackbone(kind="3d", block="bottleneck", depths=bottleneck, width=width, shortcut=shortcut)
    if name == "r2plus1d_10":
        return ResNetBackbone(kind="2plus1d", block="basic", depths=basic, width=width, shortcut=shortcut)
    if name == "c3d":
        return C3DBackbone(width=width)
    raise ValueError(f"backbone: must be one of {', '.join(BACKBONE_NAMES)}, got {name!r}")
