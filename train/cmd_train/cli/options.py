"""Options shared by ``cmd-train pretrain`` and ``cmd-train finetune``; imports nothing slow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmd_extract.console.commands import EXIT_INTERRUPTED
from cmd_extract.sources.location import is_url

if TYPE_CHECKING:
    from cmd_extract.shard.remote import RemoteFolder
    from cmd_train.engine.loop import TrainingResult

# --max-hours counts from the start of the process, since loading takes time, too.
_STARTED = time.monotonic()


class ShardsType(click.Path):
    """A folder of shards, or the URL of published ones."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the folder; URLs stay text."""
        return value if isinstance(value, str) and is_url(value) else super().convert(value, param, ctx)


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add SHARDS, RUN_DIR and the shared options to a command."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Check settings and data, show steps and sizes; write nothing."),
        click.option("--print-config", is_flag=True, help="Print the resolved settings and exit; needs no SHARDS."),
        click.option(
            "--set", "pairs", multiple=True, metavar="SECTION.FIELD=VALUE", help="Override any setting; repeatable."
        ),
        click.option(
            "--config",
            "config_file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="JSON or YAML file of settings, such as the config.json of a run; overrides the recipe, and is "
            "overridden by all other options.",
        ),
        click.option(
            "--max-hours",
            type=click.FloatRange(0, min_open=True),
            help="Time limit, counted from the start of the process; save and stop then.  [default: no limit]",
        ),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Compute device."),
        click.option(
            "--workers",
            type=click.IntRange(0),
            help="Data loading processes per rank.  [default: from the recipe]",
        ),
        click.option(
            "--cache",
            type=click.Path(file_okay=False, path_type=Path),
            help="Folder on a local disk for copies of published shards; needed if SHARDS is a URL.",
        ),
        click.option(
            "--cache-gb",
            type=click.FloatRange(0, min_open=True),
            help="Maximum size of --cache in GB (10^9 bytes), for all runs that use it; needed with --cache.",
        ),
        click.option("--seed", type=click.IntRange(0), help="Random seed.  [default: from the recipe, 0]"),
        click.option(
            "--batch-size",
            type=click.IntRange(2),
            help="Global batch size, over all ranks.  [default: from the recipe]",
        ),
        click.option("--epochs", type=click.IntRange(1), help="Passes over the videos.  [default: from the recipe]"),
        click.option("--all-videos", is_flag=True, default=None, help="Train on all videos; ignore the splits."),
        click.option("--train-part", help="Part of the split to train on.  [default: train]"),
        click.option(
            "--split-column",
            help="Split column of the manifest.  [default: the only one in the shards; all videos if there is none]",
        ),
        click.argument("run_dir", required=False, type=click.Path(file_okay=False, path_type=Path)),
        click.argument("shards", nargs=-1, type=ShardsType(exists=True, file_okay=False, path_type=Path)),
    ):
        command = option(command)
    return command


def given_fields(config_file: Path | None, pairs: Sequence[str], **options: Any) -> dict[str, Any]:
    """Return the settings given by the shared options, without the options that were not given.

    Args:
        config_file: file of settings.
        pairs: values of ``--set``; they override those of the other options, which override the file.
        options: the other options.

    Raises:
        click.UsageError: ``--all-videos`` is given together with a split.
        ValueError: the file or a value of ``--set`` is invalid.
    """
    from cmd_train.config import parse_overrides, read_config_file

    for name in ("split_column", "train_part"):
        if options["all_videos"] and options[name] is not None:
            raise click.UsageError(f"--all-videos cannot be combined with --{name.replace('_', '-')}.")
    fields = {
        "split_column": "data.split_column",
        "train_part": "data.train_part",
        "all_videos": "data.all_videos",
        "epochs": "optim.epochs",
        "batch_size": "optim.batch_size",
        "seed": "run.seed",
        "workers": "data.workers",
    }
    file = read_config_file(config_file) if config_file else {}
    return file | {fields[name]: value for name, value in options.items() if value is not None} | parse_overrides(pairs)


def require_places(
    shards: tuple[Path | str, ...], run_dir: Path | None, cache: Path | None, cache_gb: float | None
) -> tuple[tuple[Path, ...] | RemoteFolder, Path]:
    """Return the shards and the run folder; they are optional only for ``--print-config``.

    Raises:
        click.UsageError: one of them is missing, or the cache does not fit the shards.
    """
    # click takes a single argument for the last one.
    if run_dir is None or not shards:
        raise click.UsageError(f"Missing argument '{'SHARDS' if run_dir is None else 'RUN_DIR'}'.")
    folders = tuple(each for each in shards if isinstance(each, Path))
    if len(folders) == len(shards):
        if cache is not None or cache_gb is not None:
            raise click.UsageError("--cache and --cache-gb are for published shards (a URL); remove them.")
        return folders, run_dir
    url = next(each for each in shards if isinstance(each, str))
    if len(shards) > 1:
        raise click.UsageError(f"{url}: give one URL, without other SHARDS.")
    if cache is None or cache_gb is None:
        raise click.UsageError(
            f"{url}: published shards are read through a cache; give --cache DIR and --cache-gb N, or copy them to a "
            "local folder with `cmd-extract fetch`."
        )
    from cmd_extract.shard.remote import RemoteFolder

    return RemoteFolder(url=url, cache=cache, max_bytes=int(cache_gb * 1e9)), run_dir


def deadline(max_hours: float | None) -> float:
    """Return the time limit as a value of ``time.monotonic()``; infinity without a limit."""
    return math.inf if max_hours is None else _STARTED + 3600 * max_hours


def report_outcome(result: TrainingResult, run_dir: Path) -> None:
    """Print the outcome of a run, on rank 0 only.

    Raises:
        SystemExit: the run was stopped before its end.
    """
    import os

    from cmd_train.distributed.process_group import read_launch_info

    launch = read_launch_info(os.environ)
    if launch.rank == 0 and result.finished:
        click.echo(f"Finished after {result.steps} steps; checkpoint in {run_dir}")
        click.echo(f"Next: cmd-eval report {run_dir}", err=True)
    elif launch.rank == 0:
        again = "Run the same command again to continue."
        click.echo(f"Stopped after step {result.steps} ({result.reason}). {again}", err=True)
    if not result.finished:
        # A launcher would treat any other exit code as a failure, and torchrun would restart all ranks.
        raise SystemExit(0 if launch.launched else EXIT_INTERRUPTED)
