"""Options that all trainings share on the command line; nothing heavy is imported here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cmd_train.engine.loop import TrainingResult

EXIT_INTERRUPTED = 130

# The time that a training is given counts from here, not from its first step: loading takes its time, too.
_STARTED = time.monotonic()


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds SHARDS, RUN_DIR and the options that choose data, length, seed, device and any other field."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Check settings and data, tell steps and sizes; write nothing."),
        click.option("--print-config", is_flag=True, help="Print the resolved settings and stop; needs no SHARDS."),
        click.option(
            "--set", "pairs", multiple=True, metavar="SECTION.FIELD=VALUE", help="Change any field; repeatable."
        ),
        click.option(
            "--max-hours",
            type=click.FloatRange(0, min_open=True),
            help="Save and stop this long after the start of the process.  [default: no limit]",
        ),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to compute."),
        click.option("--workers", type=click.IntRange(0), help="Decoding processes.  [default: the recipe's]"),
        click.option("--seed", type=click.IntRange(0), default=0, help="Decides everything random."),
        click.option(
            "--batch-size", type=click.IntRange(2), help="Samples a step, all ranks.  [default: the recipe's]"
        ),
        click.option("--epochs", type=click.IntRange(1), help="Passes over the videos.  [default: the recipe's]"),
        click.option("--part", default="train", help="Part of the split to train on."),
        click.option("--split-column", help="Train on one part of this split only.  [default: all videos]"),
        click.argument("run_dir", required=False, type=click.Path(file_okay=False, path_type=Path)),
        click.argument("shards", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)),
    ):
        command = option(command)
    return command


def given_fields(**named: Any) -> dict[str, Any]:
    """The fields that the shared options set, those that were not given left out."""
    names = {
        "split_column": "data.split_column",
        "part": "data.part",
        "epochs": "optim.epochs",
        "batch_size": "optim.batch_size",
        "seed": "run.seed",
        "workers": "data.workers",
    }
    return {names[name]: value for name, value in named.items() if value is not None}


def both_folders(shards: Path | None, run_dir: Path | None) -> tuple[Path, Path]:
    """The two arguments, which only --print-config can do without.

    Raises:
        click.UsageError: one is missing.
    """
    if shards is None or run_dir is None:
        raise click.UsageError(f"Missing argument '{'SHARDS' if shards is None else 'RUN_DIR'}'.")
    return shards, run_dir


def deadline(max_hours: float | None) -> float:
    """The ``time.monotonic()`` at which so many hours have passed since this process started; inf without a limit."""
    return math.inf if max_hours is None else _STARTED + 3600 * max_hours


def tell_end(result: TrainingResult, run_dir: Path) -> None:
    """Says how a training ended, once for all its processes.

    Raises:
        SystemExit: it was interrupted.
    """
    import os

    from cmd_train.distributed.process_group import find_seat

    seat = find_seat(os.environ)
    if seat.rank == 0 and result.finished:
        click.echo(f"trained {result.steps} steps; checkpoint in {run_dir}")
    elif seat.rank == 0:
        again = "run the same command again to continue"
        click.echo(f"stopped after step {result.steps} ({result.reason}); {again}", err=True)
    if not result.finished:
        # A launcher would take it for a failure, and torchrun would start all again.
        raise SystemExit(0 if seat.launched else EXIT_INTERRUPTED)
