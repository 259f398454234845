"""Cost of one pre-training sample (a clip, a keyframe, four motion windows) in the forward pass of R(2+1)D-26.

    python -m tests.benchmarks.sample_cost [--rounds 5] [--output build/bench.json]

Operations are counted, not timed, by torch's ``FlopCounterMode``: matrix products, convolutions and attention.
"""

from __future__ import annotations

import sys
from typing import Literal, get_args

import torch
from torch.utils.flop_counter import FlopCounterMode

from cmd_train.models.config import ModelConfig
from cmd_train.models.pretrain import PretrainModel
from tests.benchmarks.harness import Settings, run_benchmark
from tests.benchmarks.measuring import Result

MotionInput = Literal["native", "paper"]
FORMS: tuple[MotionInput, ...] = get_args(MotionInput)
SAMPLES, WINDOWS = 2, 4


def gflop_per_sample(motion_input: MotionInput) -> float:
    config = ModelConfig(motion_input=motion_input)
    size = config.crop_size
    with torch.device("meta"):
        model = PretrainModel(config)
        inputs = (
            torch.empty(SAMPLES, 3, config.clip_frames, size, size),
            torch.empty(SAMPLES, 3, 1, size, size),
            torch.empty(SAMPLES, WINDOWS, *config.motion_shape),
        )
        with FlopCounterMode(display=False) as counter:
            model(*inputs)
    return float(counter.get_total_flops()) / SAMPLES / 1e9


def benchmark(settings: Settings) -> list[Result]:
    counts = {form: tuple(gflop_per_sample(form) for _ in range(settings.rounds)) for form in FORMS}
    versus = {"native": "native motion encoder; counted", "paper": "the paper's motion encoder; counted"}
    return [
        Result(
            name="sample_gflop" if form == "native" else "sample_gflop_paper",
            values=values,
            unit="GFLOP",
            versus=versus[form],
            source="no input: R(2+1)D-26, 16 x 112 x 112, one sample forward",
        )
        for form, values in counts.items()
    ]


if __name__ == "__main__":
    run_benchmark(benchmark, __doc__, sys.argv[1:])
