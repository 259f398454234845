"""Samples per second of a pre-training step with the native motion encoder, the paper's, and none (upper bound).

    python -m tests.benchmarks.step_native_vs_paper [--rounds 5] [--quick] [--output build/bench.json]
        [--backbone r2plus1d_26] [--batch 4] [--threads 2] [--device cpu] [--precision float32] [--channels-last]

Measures wall-clock time in interleaved rounds. ``--videos`` is not used: the batches are noise in the shapes of
340 x 256 video.
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
from cmd_train.distributed.process_group import RankContext
from cmd_train.engine.objective import PretrainObjective
from cmd_train.engine.optim import build_optimizer
from cmd_train.engine.step import GradientStep
from cmd_train.models.build import build_model
from tests.benchmarks.harness import Settings, run_benchmark
from tests.benchmarks.measuring import Result

HEADER = ShardHeader(
    config={}, config_hash="", canonical_width=340, canonical_height=256, frame_width=170, frame_height=128, cell_px=8
)


class FreeEncoder(nn.Module):
    """Returns features of the right shape without computation."""

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
        valid_B=torch.ones(size, dtype=torch.bool),
        keys=tuple((0, position) for position in range(size)),
        report=SamplingReport(samples=size),
    )


class Step:
    """A network with its optimizer."""

    def __init__(self, config: TrainConfig, device: torch.device, *, free: bool) -> None:
        model = build_model(config.model, seed=config.run.seed)
        if free:
            model.motion.encoder = FreeEncoder(model.motion.encoder.out_channels, config.model.token_grid[1])
        layout = torch.channels_last_3d if config.run.channels_last else torch.preserve_format
        model.to(device, memory_format=layout)
        self.optimizer = build_optimizer(model, config.optim)
        context = RankContext(rank=0, world_size=1, device=device)
        self.gradients = GradientStep(model, PretrainObjective(config, HEADER), config, context)
        self.batch = some_batch(config.optim.batch_size, config.model.clip_frames).to(device)
        self.done = 0

    def rate(self) -> float:
        """Take one step and return the samples per second."""
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


def benchmark(settings: Settings, options: argparse.Namespace) -> list[Result]:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    def configured(motion_input: str) -> TrainConfig:
        changes = {"model.backbone": options.backbone, "model.motion_input": motion_input}
        changes |= {"optim.batch_size": options.batch, "run.precision": options.precision}
        changes |= {"run.channels_last": options.channels_last}
        return build_config("ucf101", changes | (TINY if settings.quick else {}))

    device = torch.device(options.device)
    steps = {name: Step(configured(form), device, free=free) for name, (form, free) in FORMS.items()}
    for step in steps.values():
        step.rate()
    # Interleave the measurements, so that other load affects all of them equally.
    rates = [{name: step.rate() for name, step in steps.items()} for _ in range(settings.rounds)]
    on = f"{options.threads} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    source = f"noise: {options.backbone}, batch {options.batch}, {options.precision}, {on}"

    def result(name: str, form: str, over: str | None, versus: str) -> Result:
        values = tuple(row[form] / (row[over] if over else 1) for row in rates)
        unit = "x the speed" if over else "samples/s"
        return Result(name=name, values=values, unit=unit, versus=versus, source=source)

    return [
        result("step_native_vs_paper", "native", "paper", "the paper's motion encoder, wall-clock time"),
        result("step_free_vs_paper", "free", "paper", "the paper's; upper bound, without a motion encoder"),
        result("step_samples_per_s", "native", None, "native motion encoder, wall-clock time"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--backbone", default="r2plus1d_26")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--channels-last", action="store_true")
    options, rest = parser.parse_known_args(sys.argv[1:])
    run_benchmark(partial(benchmark, options=options), __doc__, rest)


if __name__ == "__main__":
    main()
