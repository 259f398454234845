"""Encoders of what the clip is matched to: keyframes (context) and future motion vectors (motion).

Shape legend:
    B  samples of a batch
    C  channels (motion: dx, dy and, at the grid's own resolution, validity)
    T  motion frames
    H  rows, W  columns
    D  features
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from cmd_train.models.resnet import ResNetTrunk, TrunkSpec, initialise_convolutions

MotionInput = Literal["native", "paper"]
MOTION_INPUTS: tuple[MotionInput, ...] = get_args(MotionInput)

LONGEST_MOTION_FRAMES = 8
NATIVE_CELL_PX = 4
"""Side of one cell of the native motion input, in pixels of the crop."""


def motion_input_shape(motion_input: MotionInput, *, frames: int, crop_size: int) -> tuple[int, int, int, int]:
    """Returns the (C, T, H, W) extents of one motion window as the encoder wants it.

    Args:
        motion_input: "native" (dx, dy, validity; one cell for 4 x 4 pixels of the crop) or "paper" (dx, dy; one
            value for every pixel of the crop).
        frames: motion frames of a window.
        crop_size: side of the clip's crop in pixels.
    """
    if motion_input == "native":
        side = crop_size // NATIVE_CELL_PX
        return 3, frames, side, side
    return 2, frames, crop_size, crop_size


class ContextEncoder(nn.Module):
    """R2D-10 over a keyframe: basic blocks of 1x3x3 convolutions, averaged over space.

    Args:
        width: channels of the first stage; the output has eight times as many.
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
        """Maps keyframes (B, 3, 1, H, W), normalised RGB, to features (B, D)."""
        return self.trunk(keyframe_B31HW)[-1].mean(dim=(2, 3, 4))  # type: ignore[no-any-return] # modules give Any


class MotionEncoder(nn.Module):
    """R3D-10 over a window of motion vectors, ending on the token map's spatial grid and a single time step.

    Both forms keep all frames through the stem and the first stage, then halve time three times.

    - "paper": motion brought to the crop's resolution, a 7x7 stem of stride 1 and a max-pool, as published.
    - "native": motion at a quarter of the crop's resolution, about that of the block grid itself, so nothing is
      upsampled. A 3x3 stem without pool and a first stage see every cell; space is halved twice only. At half the
      paper's widths, with a 1x1x1 convolution to the paper's output width, a window costs a sixteenth of it.

    Args:
        motion_input: which form.
        width: channels of the paper form's first stage; either form writes eight times as many.

    Raises:
        ValueError: if the width cannot be halved for the native form.
    """

    def __init__(self, *, motion_input: MotionInput = "native", width: int = 64) -> None:
        super().__init__()
        self.out_channels = 8 * width
        native = motion_input == "native"
        if native and (width < 2 or width % 2):
            raise ValueError(f"width must be even for the native motion encoder, not {width}")
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
            )
        )
        trunk_channels = self.trunk.spec.stage_channels[-1]
        self.project = nn.Conv3d(trunk_channels, self.out_channels, 1, bias=False) if native else nn.Identity()
        initialise_convolutions(self.project)

    def forward(self, motion_BCTHW: Tensor) -> Tensor:
        """Maps motion windows (B, C, T, H, W), shaped by `motion_input_shape`, to (B, 8 * width, 1, h, w).

        Raises:
            ValueError: if the channels or frames are not what the encoder takes.
        """
        channels, frames = self.trunk.spec.in_channels, motion_BCTHW.shape[2]
        if motion_BCTHW.shape[1] != channels:
            raise ValueError(f"motion must have {channels} channels, not {motion_BCTHW.shape[1]}")
        if not 1 <= frames <= LONGEST_MOTION_FRAMES:
            raise ValueError(f"motion must have 1 to {LONGEST_MOTION_FRAMES} frames, not {frames}")
        return self.project(self.trunk(motion_BCTHW)[-1])  # type: ignore[no-any-return] # modules give Any
