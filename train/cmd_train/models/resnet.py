"""Residual networks over video: one trunk for full, factorised and purely spatial 3D convolutions.

Shape legend, used as suffixes of tensor names throughout the networks:
    B  samples of a batch
    C  channels
    T  frames (time steps)
    H  rows, W  columns (in `BWCTHW` the first W counts motion windows)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

Triple = tuple[int, int, int]
ConvKind = Literal["3d", "2plus1d", "2d"]
BlockKind = Literal["basic", "bottleneck"]

STAGE_COUNT = 4


class ConvNorm(nn.Module):
    """A 3D convolution without bias, padded to keep sizes at stride 1, and its BatchNorm.

    Args:
        in_channels: channels read.
        out_channels: channels written.
        kernel: odd extents over (T, H, W).
        stride: steps over (T, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: Triple, stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.norm = nn.BatchNorm3d(out_channels)

    @property
    def last_norm(self) -> nn.BatchNorm3d:
        """The BatchNorm that scales the unit's output."""
        return self.norm

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Maps (B, in, T, H, W) to (B, out, T', H', W')."""
        return self.norm(self.conv(video_BCTHW))  # type: ignore[no-any-return] # modules give Any


class FactorisedConvNorm(nn.Module):
    """The "(2+1)D" unit: a spatial convolution, BatchNorm, ReLU, then a temporal convolution and its BatchNorm.

    The middle width keeps the parameter count of the full convolution, rounded down.

    Args:
        in_channels: channels read.
        out_channels: channels written.
        kernel: odd extents over (T, H, W) of the convolution that is factorised; H and W alike.
        stride: steps over (T, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: Triple, stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        time, rows, columns = kernel
        area = rows * columns
        middle = time * area * in_channels * out_channels // (area * in_channels + time * out_channels)
        self.spatial = ConvNorm(in_channels, middle, kernel=(1, rows, columns), stride=(1, stride[1], stride[2]))
        self.relu = nn.ReLU(inplace=True)
        self.temporal = ConvNorm(middle, out_channels, kernel=(time, 1, 1), stride=(stride[0], 1, 1))

    @property
    def last_norm(self) -> nn.BatchNorm3d:
        """The BatchNorm that scales the unit's output."""
        return self.temporal.norm

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Maps (B, in, T, H, W) to (B, out, T', H', W')."""
        return self.temporal(self.relu(self.spatial(video_BCTHW)))  # type: ignore[no-any-return] # modules give Any


def conv_unit(
    kind: ConvKind, in_channels: int, out_channels: int, *, kernel: Triple, stride: Triple
) -> ConvNorm | FactorisedConvNorm:
    """Builds the unit that stands for one 3D convolution in a network of the given kind.

    Args:
        kind: "3d" leaves the convolution whole, "2plus1d" factorises it, "2d" keeps its spatial part only.
        in_channels: channels read.
        out_channels: channels written.
        kernel: extents over (T, H, W) of the full convolution.
        stride: steps over (T, H, W) of the full convolution; "2d" never steps over time.
    """
    if kind == "2plus1d":
        return FactorisedConvNorm(in_channels, out_channels, kernel=kernel, stride=stride)
    if kind == "2d":
        kernel, stride = (1, *kernel[1:]), (1, *stride[1:])
    return ConvNorm(in_channels, out_channels, kernel=kernel, stride=stride)


class ResidualBlock(nn.Module):
    """A residual block, basic (two 3x3x3 units) or bottleneck (1x1x1, 3x3x3, 1x1x1).

    Args:
        kind: kind of the block's 3x3x3 convolutions.
        block: "basic" or "bottleneck".
        in_channels: channels read.
        width: the stage's width; a bottleneck writes `expansion(block)` times as many channels.
        stride: steps over (T, H, W), taken by the block's first 3x3x3 convolution.
    """

    def __init__(self, kind: ConvKind, block: BlockKind, in_channels: int, width: int, *, stride: Triple) -> None:
        super().__init__()
        cube, point, still = (3, 3, 3), (1, 1, 1), (1, 1, 1)
        out_channels = width * expansion(block)
        if block == "basic":
            units = [
                conv_unit(kind, in_channels, width, kernel=cube, stride=stride),
                conv_unit(kind, width, width, kernel=cube, stride=still),
            ]
        else:
            units = [
                ConvNorm(in_channels, width, kernel=point),
                conv_unit(kind, width, width, kernel=cube, stride=stride),
                ConvNorm(width, out_channels, kernel=point),
            ]
        self.units = nn.ModuleList(units)
        changes = stride != still or in_channels != out_channels
        self.shortcut = ConvNorm(in_channels, out_channels, kernel=point, stride=stride) if changes else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def zero_last_norm(self) -> None:
        """Makes the block its shortcut, as at the start of training."""
        last = self.units[-1]
        assert isinstance(last, ConvNorm | FactorisedConvNorm)
        nn.init.zeros_(last.last_norm.weight)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Maps (B, in, T, H, W) to (B, width * expansion, T', H', W')."""
        residual_BCTHW = video_BCTHW
        for index, unit in enumerate(self.units):
            residual_BCTHW = unit(self.relu(residual_BCTHW) if index else residual_BCTHW)
        return self.relu(residual_BCTHW + self.shortcut(video_BCTHW))  # type: ignore[no-any-return] # modules give Any


def expansion(block: BlockKind) -> int:
    """Returns how many times its stage's width a block writes."""
    return 4 if block == "bottleneck" else 1


@dataclass(frozen=True, kw_only=True)
class TrunkSpec:
    """What distinguishes one residual trunk from another.

    Attributes:
        kind: kind of its convolutions (see `conv_unit`).
        block: kind of its residual blocks.
        depths: blocks in each of the four stages.
        in_channels: channels of the input.
        width: channels of the stem and of the first stage; each later stage doubles it.
        stem_kernel: extents of the stem's convolution over (T, H, W).
        stem_stride: its steps.
        max_pool: whether a 1x3x3 max-pool of spatial stride 2 follows the stem.
        stage_strides: steps over (T, H, W) of each stage's first block.

    Raises:
        ValueError: if a size is not positive or there are not four stages.
    """

    kind: ConvKind
    block: BlockKind
    depths: tuple[int, int, int, int]
    in_channels: int
    width: int
    stem_kernel: Triple
    stem_stride: Triple
    max_pool: bool
    stage_strides: tuple[Triple, Triple, Triple, Triple]

    def __post_init__(self) -> None:
        for field in ("in_channels", "width"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, not {getattr(self, field)}")
        for field in ("depths", "stage_strides"):
            if len(getattr(self, field)) != STAGE_COUNT:
                raise ValueError(f"{field} must name {STAGE_COUNT} stages, not {getattr(self, field)}")

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels that each stage writes."""
        return tuple(self.width * 2**stage * expansion(self.block) for stage in range(STAGE_COUNT))


class ResNetTrunk(nn.Module):
    """Stem and four stages of residual blocks.

    Args:
        spec: the trunk's definition.
    """

    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.stem = conv_unit(spec.kind, spec.in_channels, spec.width, kernel=spec.stem_kernel, stride=spec.stem_stride)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)) if spec.max_pool else nn.Identity()
        stages = []
        for stage, (in_channels, out_channels) in enumerate(pairwise((spec.width, *spec.stage_channels))):
            width, stride = out_channels // expansion(spec.block), spec.stage_strides[stage]
            blocks = [ResidualBlock(spec.kind, spec.block, in_channels, width, stride=stride)]
            for _ in range(spec.depths[stage] - 1):
                blocks.append(ResidualBlock(spec.kind, spec.block, out_channels, width, stride=(1, 1, 1)))
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        initialise_convolutions(self)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                # Every block starts as its shortcut (also where the shortcut changes the size), so that depth
                # costs nothing at first; the paper's networks start like this.
                module.zero_last_norm()

    def forward(self, video_BCTHW: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, in, T, H, W) to the outputs of the four stages, first to last."""
        current_BCTHW = self.pool(self.relu(self.stem(video_BCTHW)))
        outputs = []
        for stage in self.stages:
            current_BCTHW = stage(current_BCTHW)
            outputs.append(current_BCTHW)
        return tuple(outputs)


def initialise_convolutions(network: nn.Module) -> None:
    """Draws every 3D convolution from a Kaiming normal over its outputs and clears its bias, in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
