"""Samples a second of a pre-training step: native motion encoder, the paper's, and a free one (the ceiling).

python -m tests.benchmarks.step_native_vs_paper [--backbone r2plus1d_26] [--batch 4] [--rounds 5] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from extract.schema import ShardHeader
from train.batch import Batch
from train.build import build_model
from train.config import TrainConfig, build_config
from train.distributed import Placement
from train.objective import PretrainObjective
from train.optim import build_optimizer
from train.sampling_report import SamplingReport
from train.step import GradientStep

HEADER = ShardHeader(
    config={}, config_hash="", canonical_width=340, canonical_height=256, frame_width=170, frame_height=128, cell_px=8
)


class FreeEncoder(nn.Module):
    """Gives features of the right shape for nothing."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.feature = nn.Parameter(torch.randn(1, channels, 1, side, side))

    def forward(self, motion_BCTHW: Tensor) -> Tensor:
        return self.feature.expand(len(motion_BCTHW), -1, -1, -1, -1)


def some_batch(size: int, frames: int) -> Batch:
    rows, columns = HEADER.grid_shape
    return Batch(
        clip_u8_BTHWC=torch.randint(0, 256, (size, frames, 128, 170, 3), dtype=torch.uint8),
        keyframe_u8_BHWC=torch.randint(0, 256, (size, 256, 340, 3), dtype=torch.uint8),
        motion_quarter_px_BWTCHW=torch.randint(-40, 41, (size, 4, 8, 2, rows, columns), dtype=torch.int16),
        motion_valid_BWTHW=torch.ones(size, 4, 8, rows, columns, dtype=torch.bool),
        window_valid_BW=torch.ones(size, 4, dtype=torch.bool),
        video_B=torch.arange(size),
        keys=tuple((0, position) for position in range(size)),
        report=SamplingReport(samples=size),
    )


class Step:
    """One network with its optimiser."""

    def __init__(self, config: TrainConfig, device: torch.device, *, free: bool) -> None:
        model = build_model(config)
        if free:
            model.motion.encoder = FreeEncoder(model.motion.encoder.out_channels, config.model.token_grid[1])
        layout = torch.channels_last_3d if config.run.channels_last else torch.preserve_format
        model.to(device, memory_format=layout)
        self.optimizer = build_optimizer(model, config.optim)
        placement = Placement(rank=0, world_size=1, device=device)
        self.gradients = GradientStep(model, PretrainObjective(config, HEADER), config, placement, print)
        self.batch = some_batch(config.optim.batch_size, config.model.clip_frames).to(device)
        self.done = 0

    def rate(self) -> float:
        """Samples a second of one step."""
        if self.batch.video_B.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        self.gradients(self.batch, self.done)
        self.optimizer.step()
        if self.batch.video_B.is_cuda:
            torch.cuda.synchronize()
        self.done += 1
        return len(self.batch) / (time.perf_counter() - start)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="r2plus1d_26")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--channels-last", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    def configured(motion_input: str) -> TrainConfig:
        changes = {"model.backbone": arguments.backbone, "model.motion_input": motion_input}
        changes |= {"optim.batch_size": arguments.batch, "run.precision": arguments.precision}
        return build_config("ucf101", changes | {"run.channels_last": arguments.channels_last})

    device = torch.device(arguments.device)
    forms = {"paper": ("paper", False), "native": ("native", False), "free (the ceiling)": ("native", True)}
    steps = {name: Step(configured(form), device, free=free) for name, (form, free) in forms.items()}
    for step in steps.values():
        step.rate()
    # In turn, so that other work on the machine meets all alike.
    rates = [{name: step.rate() for name, step in steps.items()} for _ in range(arguments.rounds)]
    print(
        f"{arguments.backbone}, batch {arguments.batch}, {arguments.precision}, {arguments.threads} threads, {device}"
    )
    print("| motion encoder | samples a second, median (lowest to highest) | over paper |\n|---|---|---|")
    for name in forms:
        ratios = [row[name] / row["paper"] for row in rates]
        print(f"| {name} | {spread([row[name] for row in rates])} | {spread(ratios)} |")


if __name__ == "__main__":
    main()
