"""Encoders of the keys: of keyframes (context) and of future motion vectors (motion).

Shape legend:
    B  samples of a batch
    C  channels (motion: dx, dy and, in native motion input, validity)
    T  motion frames
    H  rows, W  columns
    D  features
"""

from __future__ import annotations

from torch import Tensor, nn

from cmd_train.augment.config import MotionInput
from cmd_train.models.config import MAX_MOTION_FRAMES, ShortcutKind
from cmd_train.models.resnet import ResNetTrunk, TrunkSpec, initialize_convolutions


class ContextEncoder(nn.Module):
    """R2D-10 encoder of keyframes: basic blocks of 1x3x3 convolutions, then average pooling.

    Args:
        width: channels of the first stage; the output has eight times as many channels.
    """

    def __init__(self, *, width: int = 64) -> None:
        super().__init__()
        halve = (1, 2, 2)
        self.trunk = ResNetTrunk(
            TrunkSpec(
                kind="2d",
                block="basic",
                depths=(1, 1, 1, 1),
                in_channels=3,
                width=width,
                stem_kernel=(1, 7, 7),
                stem_stride=halve,
                max_pool=True,
                stage_strides=((1, 1, 1), halve, halve, halve),
            )
        )
        self.out_channels = self.trunk.spec.stage_channels[-1]

    def forward(self, keyframe_B31HW: Tensor) -> Tensor:
        """Map keyframes (B, 3, 1, H, W), normalized RGB, to features (B, D)."""
        return self.trunk(keyframe_B31HW)[-1].mean(dim=(2, 3, 4))  # type: ignore[no-any-return] # modules return Any


class MotionEncoder(nn.Module):
    """R3D-10 encoder of motion windows; its output has the token map's spatial grid and a single time step.

    Both variants keep all frames up to the first stage, then halve time three times.

    - "paper": motion resampled to crop resolution, a 7x7 stem of stride 1 and max pooling, as published.
    - "native": motion at a quarter of the crop resolution, which is close to that of the block grid, so nothing is
      upsampled. The 3x3 stem without pooling and the first stage cover every cell; space is halved only twice. With
      half the paper's widths and a 1x1x1 projection to the paper's output width, a window takes 1/16 of the compute.

    Args:
        motion_input: variant.
        width: channels of the first stage of the "paper" variant; the output of both has eight times as many channels.
        shortcut: kind of the shortcuts, see `models.resnet.ResidualBlock`.

    Raises:
        ValueError: the width is odd and the variant is "native".
    """

    def __init__(
        self, *, motion_input: MotionInput = "native", width: int = 64, shortcut: ShortcutKind = "strided"
    ) -> None:
        super().__init__()
        self.out_channels = 8 * width
        native = motion_input == "native"
        if native and (width < 2 or width % 2):
            raise ValueError(f"width: must be even and at least 2 for the native motion encoder, got {width}")
        halve, halve_time = (2, 2, 2), (2, 1, 1)
        self.trunk = ResNetTrunk(
            TrunkSpec(
                kind="3d",
                block="basic",
                depths=(1, 1, 1, 1),
                in_channels=3 if native else 2,
                width=width // 2 if native else width,
                stem_kernel=(3, 3, 3) if native else (3, 7, 7),
                stem_stride=(1, 1, 1),
                max_pool=not native,
                stage_strides=((1, 1, 1), halve, halve, halve_time if native else halve),
                shortcut=shortcut,
            )
        )
        trunk_channels = self.trunk.spec.stage_channels[-1]
        self.project = nn.Conv3d(trunk_channels, self.out_channels, 1, bias=False) if native else nn.Identity()
        initialize_convolutions(self.project)

    def forward(self, motion_BCTHW: Tensor) -> Tensor:
        """Map motion windows (B, C, T, H, W), shaped as `motion_input_shape`, to (B, 8 * width, 1, h, w).

        Raises:
            ValueError: the number of channels or frames is not supported.
        """
        channels, frames = self.trunk.spec.in_channels, motion_BCTHW.shape[2]
        if motion_BCTHW.shape[1] != channels:
            raise ValueError(f"motion_BCTHW: must have {channels} channels, got {motion_BCTHW.shape[1]}")
        if not 1 <= frames <= MAX_MOTION_FRAMES:
            raise ValueError(f"motion_BCTHW: must have 1 to {MAX_MOTION_FRAMES} frames, got {frames}")
        return self.project(self.trunk(motion_BCTHW)[-1])  # type: ignore[no-any-return] # modules return Any
