"""Samples a second of a pre-training step: native motion encoder, the paper's, and a free one (the ceiling).

    python -m tests.benchmarks.step_native_vs_paper [--rounds 5] [--quick] [--output build/bench.json]
        [--backbone r2plus1d_26] [--batch 4] [--threads 2] [--device cpu] [--precision float32] [--channels-last]

By the clock, since that is what a training waits for; the three take turns. ``--videos`` is of no use: the batches are
noise, in the shapes of 340 x 256 video.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial

import torch
from torch import Tensor, nn

from cmd_extract.schema import ShardHeader
from cmd_train.config import TrainConfig, build_config
from cmd_train.data.batch import Batch
from cmd_train.data.sampling_report import SamplingReport
from cmd_train.distributed.process_group import Placement
from cmd_train.engine.objective import PretrainObjective
from cmd_train.engine.optim import build_optimizer
from cmd_train.engine.step import GradientStep
from cmd_train.models.build import build_model
from tests.benchmarks.measuring import Result
from tests.benchmarks.subject import Plan, run_subject

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
        model = build_model(config.model, seed=config.run.seed)
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


TINY = {"model.width": 8, "model.encoder_width": 4, "model.crop_size": 32, "model.predictor_width": 32}
FORMS = {"paper": ("paper", False), "native": ("native", False), "free": ("native", True)}


def benchmark(plan: Plan, asked: argparse.Namespace) -> list[Result]:
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)

    def configured(motion_input: str) -> TrainConfig:
        changes = {"model.backbone": asked.backbone, "model.motion_input": motion_input}
        changes |= {"optim.batch_size": asked.batch, "run.precision": asked.precision}
        changes |= {"run.channels_last": asked.channels_last}
        return build_config("ucf101", changes | (TINY if plan.quick else {}))

    device = torch.device(asked.device)
    steps = {name: Step(configured(form), device, free=free) for name, (form, free) in FORMS.items()}
    for step in steps.values():
        step.rate()
    # In turn, so that other work on the machine meets all alike.
    rates = [{name: step.rate() for name, step in steps.items()} for _ in range(plan.rounds)]
    on = f"{asked.threads} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    source = f"noise: {asked.backbone}, batch {asked.batch}, {asked.precision}, {on}"

    def result(name: str, form: str, over: str | None, versus: str) -> Result:
        values = tuple(row[form] / (row[over] if over else 1) for row in rates)
        unit = "x the speed" if over else "samples/s"
        return Result(name=name, values=values, unit=unit, versus=versus, source=source)

    return [
        result("step_native_vs_paper", "native", "paper", "the paper's motion encoder, by the clock"),
        result("step_free_vs_paper", "free", "paper", "the paper's; no motion encoder at all: the ceiling"),
        result("step_samples_per_s", "native", None, "native motion encoder, by the clock"),
    ]


def main() -> None:
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--backbone", default="r2plus1d_26")
    own.add_argument("--batch", type=int, default=4)
    own.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    own.add_argument("--device", default="cpu")
    own.add_argument("--precision", default="float32")
    own.add_argument("--channels-last", action="store_true")
    asked, rest = own.parse_known_args(sys.argv[1:])
    run_subject(partial(benchmark, asked=asked), __doc__, rest)


if __name__ == "__main__":
    main()
