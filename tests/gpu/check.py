"""Check and measure training on one GPU; stops after ``--minutes``:

    python -m tests.gpu.check [SHARDS] [--minutes 9]
    python -m tests.gpu.check --device cpu --tiny      # the same steps where there is no GPU, with nothing measured
    python -m tests.gpu.check --no-measurement         # steps 1 and 2 only

1. Loss and gradients of both objectives, on the GPU and on the CPU, in float32: they must agree.
2. A process group of one rank (NCCL on a GPU): DistributedDataParallel must change nothing.
3. Samples per second for every precision, with and without compilation (``tests.benchmarks.gpu_training``).
4. ``cmd-eval evidence`` in the remaining time. Without SHARDS, on synthetic videos.

The evidence is kept in ``build/gpu/evidence`` and continues when the script is run again.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from cmd_extract.shard.reader import ShardSet
from cmd_train.config import TrainConfig, build_config
from cmd_train.data.batch import Batch
from cmd_train.data.loading import DeviceCopier
from cmd_train.distributed.process_group import leave_group
from cmd_train.engine.objective import PretrainObjective
from cmd_train.models.build import build_model
from tests.benchmarks.loader_workers import batch_stream
from tests.paths import ROOT

OBJECTIVES = {
    "directions": {},
    "features": {
        "loss.motion_target": "features",
        "sampling.motion_window": "future",
        "sampling.temporal_negatives": 3,
    },
}
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-2
"""Largest relative differences; convolutions on the two devices sum in another order."""
_SECONDS_TO_STOP = 40


def check_objectives(shards: ShardSet, device: torch.device, batch_size: int) -> None:
    """Compare loss and gradients on a device with those on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name, changes in OBJECTIVES.items():
        config = build_config("demo", {**changes, "optim.batch_size": batch_size})
        batch = next(batch_stream(shards, config.sampling, 0, batch=batch_size))
        expected_loss, expected = loss_and_gradient(shards, config, batch, torch.device("cpu"))
        loss, gradient = loss_and_gradient(shards, config, batch, device)
        loss_error = abs(loss - expected_loss) / abs(expected_loss)
        gradient_error = float((gradient - expected).norm() / expected.norm())
        print(
            f"{name}: loss {loss:.6f} (CPU {expected_loss:.6f}), gradients differ by {gradient_error:.1e}", flush=True
        )
        if not (loss_error < LOSS_TOLERANCE and gradient_error < GRADIENT_TOLERANCE):
            sys.exit(f"{name}: loss differs by {loss_error:.1e} and gradients by {gradient_error:.1e}")


def loss_and_gradient(
    shards: ShardSet, config: TrainConfig, batch: Batch, device: torch.device, *, parallel: bool = False
) -> tuple[float, torch.Tensor]:
    """Return the loss of a batch and the gradient of all parameters, as one vector on the CPU."""
    model: torch.nn.Module = build_model(config.model, seed=0).to(device).train()
    if parallel:
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    output = PretrainObjective(config, shards.header)(model, DeviceCopier(device)(batch))
    output.loss.backward()
    gradients = [torch.zeros(0) if p.grad is None else p.grad.detach().flatten().cpu() for p in model.parameters()]
    return float(output.loss.detach()), torch.cat(gradients)


def check_process_group(shards: ShardSet, device: torch.device, batch_size: int) -> None:
    """Compare loss and gradients in a process group of one rank with those outside of one."""
    config = build_config("demo", {"optim.batch_size": batch_size})
    batch = next(batch_stream(shards, config.sampling, 0, batch=batch_size))
    _, expected = loss_and_gradient(shards, config, batch, device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        _, gradient = loss_and_gradient(shards, config, batch, device, parallel=True)
        leave_group()
    error = float((gradient - expected).norm() / expected.norm())
    print(f"{backend}, one rank: gradients differ by {error:.1e}", flush=True)
    if not error < GRADIENT_TOLERANCE:
        sys.exit(f"{backend}: gradients differ by {error:.1e}")


def run(arguments: Sequence[object], seconds: float | None = None) -> int:
    """Run Python with these arguments; stopped after ``seconds`` by SIGTERM, so that it saves. Return its exit code."""
    process = subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        print("out of time; run the same command again to continue", flush=True)
        process.send_signal(signal.SIGTERM)
        return process.wait(_SECONDS_TO_STOP)


def command(name: str, *arguments: object) -> list[object]:
    """Return Python's arguments for a command of this project, which need not be on the PATH."""
    return ["-c", f"from {name.replace('-', '_')}.cli.main import main; main(prog_name='{name}')", *arguments]


def make_shards(folder: Path, *, tiny: bool) -> Path:
    """Synthesize and extract the demo videos, unless that was done before."""
    videos = ("--videos-per-combination", 2, "--frames", 40) if tiny else ()
    if not (folder / "shards" / "index.json").is_file():
        for arguments in (
            ("synthesize", folder / "videos", *videos),
            ("run", folder / "videos" / "manifest.csv", folder / "shards"),
        ):
            if code := run(command("cmd-extract", *arguments)):
                sys.exit(f"cmd-extract failed with exit code {code}")
    return folder / "shards"


def evidence_arguments(device: str, *, tiny: bool) -> Sequence[object]:
    """Return the options of ``cmd-eval evidence``."""
    few = ("--steps", 1, "--seeds", 1, "--auxiliary-steps", 1, "--clips", 1) if tiny else ("--auxiliary-seeds", 3)
    return ("--recipe", "demo", "--auxiliary-recipe", "finetune-demo", "--device", device, *few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, nargs="?")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--no-measurement", action="store_true")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes - _SECONDS_TO_STOP
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("no CUDA device: use --device cpu --tiny to try the script without one")
    device = torch.device(arguments.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}", flush=True)
    shards = arguments.shards or make_shards(arguments.out, tiny=arguments.tiny)
    batch_size = 4 if arguments.tiny else 16
    check_objectives(ShardSet(shards), device, batch_size)
    check_process_group(ShardSet(shards), device, batch_size)
    if arguments.no_measurement:
        return
    speed = ["--device", arguments.device, "--channels-last", *(["--tiny"] if arguments.tiny else [])]
    if code := run(["-m", "tests.benchmarks.gpu_training", shards, *speed], seconds=end - time.monotonic()):
        sys.exit(f"the benchmark failed with exit code {code}")
    options = evidence_arguments(arguments.device, tiny=arguments.tiny)
    evidence = command("cmd-eval", "evidence", shards, arguments.out / "evidence", *options)
    sys.exit(run(evidence, seconds=end - time.monotonic()))


if __name__ == "__main__":
    main()
