"""Forward cost of one pre-training sample: a clip, a keyframe, four motion windows; R(2+1)D-26.

    python -m tests.benchmarks.sample_cost [--rounds 5] [--output build/bench.json]

Counted, not timed, by torch's ``FlopCounterMode``: matrices, convolutions and attention.
"""

from __future__ import annotations

import sys
from typing import Literal, get_args

import torch
from torch.utils.flop_counter import FlopCounterMode

from cmd_train.models.config import ModelConfig
from cmd_train.models.pretrain import PretrainModel
from tests.benchmarks.measuring import Result
from tests.benchmarks.subject import Plan, run_subject

MotionInput = Literal["native", "paper"]
FORMS: tuple[MotionInput, ...] = get_args(MotionInput)
SAMPLES, WINDOWS = 2, 4


def gflop_a_sample(motion_input: MotionInput) -> float:
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


def benchmark(plan: Plan) -> list[Result]:
    counts = {form: tuple(gflop_a_sample(form) for _ in range(plan.rounds)) for form in FORMS}
    words = {"native": "native motion encoder; a count", "paper": "the paper's motion encoder; a count"}
    return [
        Result(
            name="sample_gflop" if form == "native" else "sample_gflop_paper",
            values=values,
            unit="GFLOP",
            versus=words[form],
            source="no input: R(2+1)D-26, 16 x 112 x 112, one sample forward",
        )
        for form, values in counts.items()
    ]


if __name__ == "__main__":
    run_subject(benchmark, __doc__, sys.argv[1:])
