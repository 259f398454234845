"""The command ``cmd-train finetune``; slow imports are deferred until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cmd_train.cli.options import deadline, given_fields, report_outcome, require_places, training_options
from cmd_train.recipes import complete_recipe

SCRATCH = "scratch"


@click.command(short_help="Train a classifier with labels.")
@training_options
@click.option(
    "--from",
    "start",
    metavar="CHECKPOINT|RUN_DIR|FILE|scratch",
    help="Initial weights: a checkpoint, a run folder (its last checkpoint), published weights, or scratch for random "
    "weights.  [required]",
)
@click.option(
    "--recipe",
    default="finetune-ucf101",
    shell_complete=complete_recipe(finetune=True),
    help="Config preset; `cmd-train recipes` lists them.",
)
@click.option(
    "--auxiliary",
    type=click.Choice(["none", "motion"]),
    default="none",
    help="Auxiliary loss. motion: predict motion as in pre-training; disables rotation, which motion vectors do not "
    "follow.",
)
def finetune(
    shards: tuple[Path | str, ...],
    run_dir: Path | None,
    cache: Path | None,
    cache_gb: float | None,
    start: str | None,
    recipe: str,
    auxiliary: str,
    max_hours: float | None,
    device: str,
    print_config: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train a classifier end to end on the labeled videos of SHARDS; write checkpoints to RUN_DIR.

    Several folders of SHARDS are used as one if they were extracted with the same settings. SHARDS may be a URL to
    which `cmd-extract publish` has copied them; they are then read through --cache. Videos without a label are left
    out. The same command continues from the last checkpoint, without reading --from again. SIGTERM, SIGUSR1, Ctrl-C or
    a file RUN_DIR/stop saves and stops the run; RUN_DIR/finished or RUN_DIR/stopped records how it ended.
    `cmd-eval recognition` evaluates the classifier.
    """
    import json

    from cmd_train.config import build_config
    from cmd_train.recipes import AUXILIARY_MOTION, check_recipe

    check_recipe(recipe, finetune=True)
    config = build_config(recipe, {**(AUXILIARY_MOTION if auxiliary == "motion" else {}), **given_fields(**options)})
    if config.model.motion_head != (auxiliary == "motion"):
        raise ValueError(f"model.motion_head: {config.model.motion_head} contradicts --auxiliary {auxiliary}")
    if print_config:
        click.echo(json.dumps(config.as_dict(), indent=1))
        return
    folders, target = require_places(shards, run_dir, cache, cache_gb)
    if start is None:
        raise click.UsageError("Missing option '--from'; `--from scratch` starts from random weights.")
    from cmd_extract.console.progress import ProgressDisplay
    from cmd_train.engine.finetune import run_finetuning

    with ProgressDisplay("train", "steps", plain_seconds=None) as progress:
        result = run_finetuning(
            folders,
            target,
            config,
            start=None if start == SCRATCH else Path(start),
            device=device,
            log=progress.log,
            progress=progress,
            recipe=recipe,
            deadline=deadline(max_hours),
            dry_run=dry_run,
        )
    if not dry_run:
        report_outcome(result, target)
