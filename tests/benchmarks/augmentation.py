"""Compare the speed and accuracy of cmd_train.augment with kornia; print a table.

    python -m tests.benchmarks.augmentation [--device cpu] [--rounds 10]

Requires kornia, which is not a dependency of this project: ``pip install --no-deps kornia kornia_rs``.
"""

from __future__ import annotations

import argparse
import colorsys
import time
from collections.abc import Callable

import kornia
import numpy as np
import torch
import torch.nn.functional as F
from kornia.augmentation import (
    ColorJitter,
    RandomGaussianBlur,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    VideoSequential,
)
from PIL import Image, ImageEnhance
from torch import Tensor

from cmd_train.augment.apply import augment_clip
from cmd_train.augment.color import jitter, shift_hue
from cmd_train.augment.config import AugmentConfig
from cmd_train.augment.parameters import CropParameters, draw_parameters
from cmd_train.augment.space import crop_pictures

CLIPS, FRAMES, HEIGHT, WIDTH, CROP = 8, 16, 128, 170, 112


def ours(clip_u8: Tensor, device: torch.device) -> Callable[[int], Tensor]:
    config = AugmentConfig()

    def run(number: int) -> Tensor:
        keys = [(number, index) for index in range(CLIPS)]
        parameters = draw_parameters(config, keys, seed=0, windows=1, picture_size=(WIDTH, HEIGHT))
        return augment_clip(clip_u8.to(device), parameters, config)

    return run


def theirs(clip_u8: Tensor, device: torch.device) -> Callable[[int], Tensor]:
    pipeline = VideoSequential(
        RandomResizedCrop((CROP, CROP), scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3)),
        RandomHorizontalFlip(p=0.5),
        RandomGaussianBlur((9, 9), (0.1, 2.0), p=0.5),
        ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.5),
        RandomGrayscale(p=0.2),
        kornia.augmentation.Normalize(torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])),
        data_format="BCTHW",
        same_on_frame=True,
    ).to(device)

    def run(number: int) -> Tensor:
        torch.manual_seed(number)  # kornia draws from the global generator
        return pipeline(clip_u8.to(device).permute(0, 4, 1, 2, 3).float() / 255)

    return run


def seconds(run: Callable[[int], Tensor], device: torch.device, rounds: int) -> float:
    for number in range(3):
        run(number)
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for number in range(rounds):
        run(number)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / rounds


def crop_errors() -> tuple[float, float]:
    """Maximum errors, ours and kornia's, of shrinking a whole frame to less than half its size.

    The reference is torch's antialiased bilinear interpolation.
    """
    picture = torch.randint(0, 256, (1, 1, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    planar = picture[:, 0].permute(0, 3, 1, 2).float() / 255
    expected = F.interpolate(planar, (56, 56), mode="bilinear", antialias=True, align_corners=False)
    crop = CropParameters(box=torch.tensor([[0.0, 0, 1, 1]]), flip=torch.tensor([False]))
    own = crop_pictures(picture, crop, 56, None)[:, :, 0]
    aspect = WIDTH / HEIGHT
    whole = RandomResizedCrop((56, 56), scale=(1, 1), ratio=(aspect, aspect), align_corners=False)
    other = whole(planar)
    return (own - expected).abs().max().item(), (other - expected).abs().max().item()


def hue_errors() -> tuple[float, float]:
    """Maximum errors, ours and kornia's, of a hue shift of 0.1 turns; the reference is colorsys."""
    picture = torch.rand(1, 3, 1, 12, 12)
    pixels = picture[0, :, 0].flatten(1).T.tolist()
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in pixels]
    expected = torch.tensor([colorsys.hsv_to_rgb((h + 0.1) % 1, s, v) for h, s, v in hsv]).T.view(3, 12, 12)
    own = shift_hue(picture, torch.tensor([0.1]))[0, :, 0]
    other = kornia.enhance.adjust_hue(picture[:, :, 0], 0.1 * 2 * torch.pi)[0]
    return (own - expected).abs().max().item(), (other - expected).abs().max().item()


def contrast_errors() -> tuple[float, float]:
    """Maximum errors, ours and kornia's, of a contrast factor of 0.6.

    The reference is Pillow, whose definition torchvision follows and kornia's ColorJitter uses.
    """
    picture = torch.randint(100, 256, (24, 24, 3), dtype=torch.uint8)
    expected = np.asarray(ImageEnhance.Contrast(Image.fromarray(picture.numpy())).enhance(0.6), np.float32) / 255
    planar = picture.permute(2, 0, 1)[None].float() / 255
    one, zero = torch.ones(1), torch.zeros(1)
    own = jitter(planar.unsqueeze(2), one, torch.tensor([0.6]), one, zero)[0, :, 0]
    other = kornia.enhance.adjust_contrast_with_mean_subtraction(planar, 0.6)[0]
    target = torch.from_numpy(expected).permute(2, 0, 1)
    return (own - target).abs().max().item(), (other - target).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip_u8 = torch.randint(0, 256, (CLIPS, FRAMES, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    print(f"kornia {kornia.__version__}, torch {torch.__version__}, {device}, one thread")
    print(f"{CLIPS} clips of {FRAMES} frames, {WIDTH} x {HEIGHT} to {CROP} x {CROP}\n")
    print("| | cmd-train | kornia |\n|---|---|---|")
    rates = [CLIPS / seconds(make(clip_u8, device), device, arguments.rounds) for make in (ours, theirs)]
    print(f"| whole pipeline, clips/s | {rates[0]:.1f} | {rates[1]:.1f} |")
    for operation, errors in (
        ("shrinking by more than a factor of 2, maximum error against antialiased bilinear", crop_errors()),
        ("hue, maximum error against colorsys", hue_errors()),
        ("contrast, maximum error against Pillow", contrast_errors()),
    ):
        print(f"| {operation} | {errors[0]:.4f} | {errors[1]:.4f} |")


if __name__ == "__main__":
    main()
