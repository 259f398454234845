"""Residual networks for video: a common trunk with full, factorized or purely spatial 3D convolutions.

Shape legend; these letters are suffixes of tensor names in all networks:
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
from torch.nn import functional as F

from cmd_extract.system.validation import require, require_range
from cmd_train.models.config import ShortcutKind

Triple = tuple[int, int, int]
ConvKind = Literal["3d", "2plus1d", "2d"]
BlockKind = Literal["basic", "bottleneck"]

STAGE_COUNT = 4


class ConvNorm(nn.Module):
    """3D convolution without bias and with "same" padding at stride 1, followed by BatchNorm.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel: odd kernel size (T, H, W).
        stride: stride (T, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: Triple, stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.norm = nn.BatchNorm3d(out_channels)

    @property
    def last_norm(self) -> nn.BatchNorm3d:
        """BatchNorm that scales the output of the unit."""
        return self.norm

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Map (B, in, T, H, W) to (B, out, T', H', W')."""
        return self.norm(self.conv(video_BCTHW))  # type: ignore[no-any-return] # modules return Any


class FactorizedConvNorm(nn.Module):
    """Factorized "(2+1)D" unit: spatial convolution, BatchNorm and ReLU, then temporal convolution and BatchNorm.

    The number of intermediate channels preserves the parameter count of the full convolution, rounded down.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel: odd kernel size (T, H, W) of the convolution that is factorized.
        stride: stride (T, H, W).
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
        """BatchNorm that scales the output of the unit."""
        return self.temporal.norm

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Map (B, in, T, H, W) to (B, out, T', H', W')."""
        return self.temporal(self.relu(self.spatial(video_BCTHW)))  # type: ignore[no-any-return] # modules return Any


def conv_unit(
    kind: ConvKind, in_channels: int, out_channels: int, *, kernel: Triple, stride: Triple
) -> ConvNorm | FactorizedConvNorm:
    """Build the unit that implements a 3D convolution in a network of the given kind.

    Args:
        kind: "3d" uses the full convolution, "2plus1d" factorizes it, "2d" keeps only its spatial part.
        in_channels: input channels.
        out_channels: output channels.
        kernel: kernel size (T, H, W) of the full convolution.
        stride: stride (T, H, W) of the full convolution; "2d" ignores the temporal stride.
    """
    if kind == "2plus1d":
        return FactorizedConvNorm(in_channels, out_channels, kernel=kernel, stride=stride)
    if kind == "2d":
        kernel, stride = (1, *kernel[1:]), (1, *stride[1:])
    return ConvNorm(in_channels, out_channels, kernel=kernel, stride=stride)


class ResidualBlock(nn.Module):
    """Residual block, basic (two 3x3x3 units) or bottleneck (1x1x1, 3x3x3, 1x1x1).

    Args:
        kind: kind of the block's 3x3x3 convolutions.
        block: "basic" or "bottleneck".
        in_channels: input channels.
        width: width of the stage; the output has `expansion(block)` times as many channels.
        stride: stride (T, H, W) of the block's first 3x3x3 convolution.
        shortcut: how the shortcut reduces the resolution. At the start of training a block computes its shortcut only.
            A "strided" 1x1x1 convolution keeps one position in eight, so that a chain of them is a subsampled video in
            which small motions are invisible. "average" pooling before the convolution (ResNet-D; He et al., 2018, "Bag
            of Tricks", here over time as well) keeps all positions.
    """

    def __init__(
        self,
        kind: ConvKind,
        block: BlockKind,
        in_channels: int,
        width: int,
        *,
        stride: Triple,
        shortcut: ShortcutKind = "strided",
    ) -> None:
        super().__init__()
        cube, point, unit_stride = (3, 3, 3), (1, 1, 1), (1, 1, 1)
        out_channels = width * expansion(block)
        if block == "basic":
            units = [
                conv_unit(kind, in_channels, width, kernel=cube, stride=stride),
                conv_unit(kind, width, width, kernel=cube, stride=unit_stride),
            ]
        else:
            units = [
                ConvNorm(in_channels, width, kernel=point),
                conv_unit(kind, width, width, kernel=cube, stride=stride),
                ConvNorm(width, out_channels, kernel=point),
            ]
        self.units = nn.ModuleList(units)
        resizes = stride != unit_stride or in_channels != out_channels
        self.shortcut = _build_shortcut(shortcut, in_channels, out_channels, stride) if resizes else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def zero_last_norm(self) -> None:
        """Zero the residual branch, so that the block computes its shortcut only."""
        last = self.units[-1]
        assert isinstance(last, ConvNorm | FactorizedConvNorm)
        nn.init.zeros_(last.last_norm.weight)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Map (B, in, T, H, W) to (B, width * expansion, T', H', W')."""
        residual_BCTHW = video_BCTHW
        for index, unit in enumerate(self.units):
            residual_BCTHW = unit(self.relu(residual_BCTHW) if index else residual_BCTHW)
        return self.relu(residual_BCTHW + self.shortcut(video_BCTHW))  # type: ignore[no-any-return] # modules return Any


class AveragePool(nn.Module):
    """Average pooling whose output has the size of a strided convolution's: odd sizes round up.

    Args:
        stride: size (T, H, W) of the averaged regions. Regions are smaller at the end of an axis of odd length, and
            along an axis that is shorter than a region.
    """

    def __init__(self, stride: Triple) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Map (B, C, T, H, W) to (B, C, T', H', W')."""
        kernel = [min(step, size) for step, size in zip(self.stride, video_BCTHW.shape[2:], strict=True)]
        return F.avg_pool3d(video_BCTHW, kernel, kernel, ceil_mode=True, count_include_pad=False)


def _build_shortcut(kind: ShortcutKind, in_channels: int, out_channels: int, stride: Triple) -> nn.Module:
    point = (1, 1, 1)
    if kind == "strided" or stride == point:
        return ConvNorm(in_channels, out_channels, kernel=point, stride=stride)
    return nn.Sequential(AveragePool(stride), ConvNorm(in_channels, out_channels, kernel=point))


def expansion(block: BlockKind) -> int:
    """Return the ratio of a block's output channels to the width of its stage."""
    return 4 if block == "bottleneck" else 1


@dataclass(frozen=True, kw_only=True)
class TrunkSpec:
    """Specification of a residual trunk.

    Attributes:
        kind: kind of the convolutions (see `conv_unit`).
        block: kind of the residual blocks.
        depths: blocks in each of the four stages.
        in_channels: input channels.
        width: channels of the stem and width of the first stage; doubled at each later stage.
        stem_kernel: kernel size (T, H, W) of the stem.
        stem_stride: stride (T, H, W) of the stem.
        max_pool: whether 1x3x3 max pooling with spatial stride 2 follows the stem.
        stage_strides: stride (T, H, W) of the first block of each stage.
        shortcut: kind of the shortcuts, see `ResidualBlock`.

    Raises:
        ValueError: a size is not positive, or the number of stages is not four.
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
    shortcut: ShortcutKind = "strided"

    def __post_init__(self) -> None:
        require_range(self, "in_channels", "width", ge=1)
        for name in ("depths", "stage_strides"):
            value = getattr(self, name)
            require(len(value) == STAGE_COUNT, f"{name}: must have {STAGE_COUNT} entries, got {value}")

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Output channels of each stage."""
        return tuple(self.width * 2**stage * expansion(self.block) for stage in range(STAGE_COUNT))


class ResNetTrunk(nn.Module):
    """Stem and four stages of residual blocks.

    Args:
        spec: specification of the trunk.
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
            blocks = [ResidualBlock(spec.kind, spec.block, in_channels, width, stride=stride, shortcut=spec.shortcut)]
            for _ in range(spec.depths[stage] - 1):
                blocks.append(ResidualBlock(spec.kind, spec.block, out_channels, width, stride=(1, 1, 1)))
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        initialize_convolutions(self)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                # Blocks initially compute their shortcut only (even where it changes the size), so that depth does not
                # impede early training; the paper's networks are initialized this way.
                module.zero_last_norm()

    def forward(self, video_BCTHW: Tensor) -> tuple[Tensor, ...]:
        """Map (B, in, T, H, W) to the outputs of the four stages, first to last."""
        current_BCTHW = self.pool(self.relu(self.stem(video_BCTHW)))
        outputs = []
        for stage in self.stages:
            current_BCTHW = stage(current_BCTHW)
            outputs.append(current_BCTHW)
        return tuple(outputs)


def initialize_convolutions(network: nn.Module) -> None:
    """Initialize all 3D convolutions in place: Kaiming normal (fan-out) weights, zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
