"""Pre-training on one GPU: samples per second by precision, TFLOP/s and the measured peak, time spent waiting for data.

    python -m tests.benchmarks.gpu_training [SHARDS] [--batch 64] [--workers 8] [--steps 20] [--rounds 5]
    python -m tests.benchmarks.gpu_training --device cpu --tiny      # smoke test of the benchmark itself

Without SHARDS, synthetic videos are generated and extracted first. Samples per second are measured over whole steps
(augmentation, forward, backward, update) on a batch that is already on the device. TFLOP are counted by torch for
matrix products, convolutions and attention. Waiting is the share of time that steps fed by data workers wait for a
batch; each of these steps reads its loss at the end, as in training.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cmd_extract.shard.reader import ShardSet
from cmd_train.config import TrainConfig, build_config
from cmd_train.data.batch import Batch
from cmd_train.distributed.process_group import RankContext
from cmd_train.engine.objective import PretrainObjective
from cmd_train.engine.optim import build_optimizer
from cmd_train.engine.step import GradientStep
from cmd_train.models.build import build_model
from tests.benchmarks.clips import synthetic_videos
from tests.benchmarks.loader import make_shards
from tests.benchmarks.loader_workers import batch_stream, format_spread

FORMS = {
    "float32": ("float32", False),
    "TF32": ("tf32", False),
    "bf16": ("bf16", False),
    "bf16 + compile": ("bf16", True),
}
TINY = {
    "model.width": 8,
    "model.encoder_width": 4,
    "model.crop_size": 32,
    "model.predictor_width": 32,
    "model.embedding_dim": 16,
    "model.head_hidden": 32,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Parameters of the benchmark.

    Attributes:
        device: device to measure.
        changes: overrides of the recipe ucf101.
        batch, workers: batch size and number of data workers.
        steps, rounds: steps per measurement and number of measurements.
        side: side of the square matrices for the peak measurement.
    """

    device: torch.device
    changes: dict[str, object]
    batch: int
    workers: int
    steps: int
    rounds: int
    side: int


class Step:
    """A network with its optimizer."""

    def __init__(self, config: TrainConfig, shards: ShardSet, device: torch.device) -> None:
        layout = torch.channels_last_3d if config.run.channels_last else torch.preserve_format
        model = build_model(config.model, seed=config.run.seed)
        model.to(device, memory_format=layout)  # type: ignore[call-overload] # torch's overload covers 4D only
        self._optimizer = build_optimizer(model, config.optim)
        for group in self._optimizer.param_groups:
            group["lr"] = 1e-6  # small enough to keep the loss finite
        context = RankContext(rank=0, world_size=1, device=device)
        objective = PretrainObjective(config, shards.header)
        self._gradients = GradientStep(model, objective, config, context)
        self._done = 0

    def __call__(self, batch: Batch) -> Tensor:
        """Take one step and return its loss."""
        output, _ = self._gradients(batch, self._done)
        self._optimizer.step()
        self._done += 1
        return output.metrics["loss"]


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def peak_tflops(precision: str, plan: Plan) -> float:
    """Measure the peak throughput of this precision by products of square matrices."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    first, second = (torch.randn(plan.side, plan.side, device=plan.device, dtype=dtype) for _ in range(2))

    def products() -> None:
        for _ in range(10):
            torch.mm(first, second)

    products()
    best = min(seconds_of(products, plan.device) for _ in range(5))
    return 10.0 * 2 * plan.side**3 / best / 1e12


def tflop_of_a_step(config: TrainConfig, shards: ShardSet, batch: Batch, device: torch.device) -> float:
    """Count the floating-point operations of a forward and backward pass."""
    step = Step(config, shards, device)
    with FlopCounterMode(display=False) as counter:
        step(batch)
    return float(counter.get_total_flops()) / 1e12


def fed_by_workers(step: Step, shards: ShardSet, config: TrainConfig, plan: Plan) -> tuple[float, float]:
    """Measure steps fed by data workers: samples per second and the share of time spent waiting."""
    pinned = plan.device.type == "cuda"
    source = batch_stream(shards, config.sampling, plan.workers, batch=plan.batch, pinned=pinned)
    # Each worker prefetches two batches. Use up what was read before the measurement, or it would hide slow workers.
    for _ in range(3 + 2 * plan.workers):
        float(step(next(source).to(plan.device, non_blocking=True)))
    waited, start = 0.0, time.perf_counter()
    for _ in range(plan.steps):
        requested = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - requested
        float(step(batch.to(plan.device, non_blocking=True)))
    elapsed = time.perf_counter() - start
    return plan.steps * plan.batch / elapsed, waited / elapsed


def measure(name: str, shards: ShardSet, batch: Batch, tflop: float, plan: Plan) -> str:
    """Measure one row of the table."""
    precision, compiled = FORMS[name]
    config = configured(plan, precision, compiled)
    peak = peak_tflops(precision, plan)
    if plan.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plan.device)
    step = Step(config, shards, plan.device)

    def steps() -> None:
        for _ in range(plan.steps):
            step(batch)

    steps()
    rates = [plan.steps * plan.batch / seconds_of(steps, plan.device) for _ in range(plan.rounds)]
    fed, waiting = fed_by_workers(step, shards, config, plan)
    reached = statistics.median(rates) / plan.batch * tflop
    memory = torch.cuda.max_memory_allocated(plan.device) / 2**30 if plan.device.type == "cuda" else 0.0
    return (
        f"| {name} | {format_spread(rates)} | {reached:.3g} | {peak:.3g} | {reached / peak:.1%} | {fed:.1f} "
        f"| {waiting:.2%} | {memory:.1f} |"
    )


def configured(plan: Plan, precision: str, compiled: bool) -> TrainConfig:
    own = {"optim.batch_size": plan.batch, "run.precision": precision, "run.compile": compiled}
    return build_config("ucf101", plan.changes | own)


def planned(arguments: argparse.Namespace) -> Plan:
    changes: dict[str, object] = {"model.backbone": arguments.backbone, "run.channels_last": arguments.channels_last}
    if arguments.tiny:
        changes |= TINY
    return Plan(
        device=torch.device(arguments.device),
        changes=changes,
        batch=4 if arguments.tiny else arguments.batch,
        workers=1 if arguments.tiny else arguments.workers,
        steps=1 if arguments.tiny else arguments.steps,
        rounds=1 if arguments.tiny else arguments.rounds,
        side=256 if arguments.tiny else 8192,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path, nargs="?")
    parser.add_argument("--backbone", default="r2plus1d_26")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("no CUDA device: this benchmark needs a GPU (--device cpu --tiny tests the benchmark itself)")
    plan = planned(arguments)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as made:
        shards = ShardSet(arguments.shards or make_shards(synthetic_videos(Path(made), frames=96), Path(made)))
        plain = configured(plan, "float32", False)
        first = next(batch_stream(shards, plain.sampling, 0, batch=plan.batch))
        # A batch is valid only until the next one is requested.
        batch = first.to(plan.device) if plan.device.type == "cuda" else first
        tflop = tflop_of_a_step(plain, shards, batch, plan.device)
        card = torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else "CPU"
        print(f"{card}, torch {torch.__version__}, {arguments.backbone}, batch {plan.batch}, {plan.workers} workers")
        print(f"{tflop / plan.batch * 1e3:.3g} GFLOP per sample, forward and backward\n")
        print("| | samples/s | TFLOP/s | peak TFLOP/s | share of peak | samples/s with workers | waiting | GiB |")
        print("|---|---|---|---|---|---|---|---|")
        for name in FORMS:
            print(measure(name, shards, batch, tflop, plan), flush=True)
            torch._dynamo.reset()


if __name__ == "__main__":
    main()
