"""Tiny training runs and helpers to read their results; as a program, cmd-train with its batches recorded.

The program appends the keys of every batch to ``RECORD/rank-R.jsonl``. Environment variables of the form rank:lines
make a rank fail (FAIL_AT), kill itself (KILL_AT) or wait for the file HOLD_FOR (HOLD_AT) once it has recorded that many
lines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from cmd_train.checkpoints.files import load_checkpoint
from tests.paths import ROOT
from tests.process_groups import leave_and_check

SIZES = {
    "model.width": 8,
    "model.encoder_width": 4,
    "model.crop_size": 32,
    "model.predictor_width": 32,
    "model.embedding_dim": 16,
    "model.head_hidden": 32,
    "sampling.clip_frames": 8,
}
FEATURES = {
    "loss.motion_target": "features",
    "loss.context_weight": 1.0,
    "sampling.motion_window": "future",
    "sampling.temporal_negatives": 3,
}
"""The paper's prediction of features, instead of the recipe's directions."""

FIELDS = (
    SIZES
    | FEATURES
    | {
        "optim.warmup_epochs": 1,
        "run.log_seconds": 0,
        "run.batch_picture": "false",
    }
)


def options(*, all_videos: bool = True, **changes: object) -> list[str]:
    """Return command-line options; ``run__knn_epochs=1`` sets run.knn_epochs."""
    words = ["--recipe", "demo", "--device", "cpu", *(["--all-videos"] if all_videos else [])]
    given = FIELDS | {"optim.batch_size": 8, "data.workers": 0}
    given |= {name.replace("__", "."): value for name, value in changes.items()}
    return words + [word for field, value in given.items() for word in ("--set", f"{field}={value}")]


def launch(
    ranks: int, arguments: list[Any], task: str = "pretrain", restarts: int = 0, **environment: str
) -> subprocess.Popen[str]:
    """Start cmd-train, under torchrun if there are several ranks."""
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d"]
        command += ["--rdzv-endpoint", "localhost:0", "--local-addr", "127.0.0.1", "--max-restarts", str(restarts)]
    command += ["-m", "tests.integration.cmd_train.training", task, *map(str, arguments)]
    # A different number of threads would change the order of summation.
    given = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | environment
    # Without this, torchrun's restarts fail occasionally.
    given["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=given,
        cwd=ROOT,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 240) -> str:
    """Wait for a process and return its output; kill its process group after a timeout."""
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def until_line(process: subprocess.Popen[str], start: str) -> None:
    """Read the output of a process up to a line with the given start."""
    deadline = time.monotonic() + 120
    assert process.stdout is not None
    output = []
    for line in process.stdout:
        output.append(line)
        assert time.monotonic() < deadline
        if line.startswith(start):
            return
    raise AssertionError("".join(output))


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """Return the lines of metrics.jsonl without the fields that depend on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("clips_per_second", "data_wait_share")} for line in lines]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run_dir).weights


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def recorded(folder: Path, rank: int) -> list[list[tuple[int, int]]]:
    lines = (folder / f"rank-{rank}.jsonl").read_text().splitlines()
    return [[tuple(key) for key in json.loads(line)] for line in lines]


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 150
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.1)


def _record_batches() -> None:
    from cmd_train.engine.objective import PretrainObjective

    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    path = Path(os.environ["RECORD"]) / f"rank-{rank}.jsonl"
    plain = PretrainObjective.__call__

    def recording(self: PretrainObjective, model: Any, batch: Any) -> Any:
        with path.open("a") as stream:
            own = [key for key, valid in zip(batch.keys, batch.valid_B.tolist(), strict=True) if valid]
            stream.write(json.dumps(own) + "\n")
        now = f"{rank}:{len(path.read_text().splitlines())}"
        if os.environ.get("FAIL_AT") == now:
            raise RuntimeError("a broken device")
        if os.environ.get("KILL_AT") == now:
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("HOLD_AT") == now:
            _wait_for(Path(os.environ["HOLD_FOR"]))
        return plain(self, model, batch)

    PretrainObjective.__call__ = recording  # type: ignore[method-assign] # replaced on purpose


if __name__ == "__main__":
    from cmd_train.cli.main import main
    from cmd_train.distributed import process_group as distributed

    torch.set_num_threads(1)
    distributed.leave_group = leave_and_check
    if "RECORD" in os.environ:
        _record_batches()
    main()
