"""``cmd-train finetune``. Heavy imports wait until the command needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cmd_train.cli.options import both_folders, deadline, given_fields, tell_end, training_options
from cmd_train.recipes import complete_recipe

SCRATCH = "scratch"


@click.command(short_help="Train a classifier with labels.")
@training_options
@click.option(
    "--from",
    "start",
    metavar="CHECKPOINT|RUN_DIR|FILE|scratch",
    help="Whose backbone to start from: of a checkpoint, of a training's last one, of a published file; or new.",
)
@click.option(
    "--recipe",
    default="finetune-ucf101",
    shell_complete=complete_recipe(finetune=True),
    help="Named settings; `cmd-train recipes` lists them.",
)
@click.option(
    "--auxiliary",
    type=click.Choice(["none", "motion"]),
    default="none",
    help="motion: predict motion as well, as in pre-training; without rotation, which vectors do not follow.",
)
def finetune(
    shards: Path | None,
    run_dir: Path | None,
    start: str | None,
    recipe: str,
    auxiliary: str,
    max_hours: float | None,
    pairs: tuple[str, ...],
    device: str,
    print_config: bool,
    dry_run: bool,
    **named: Any,
) -> None:
    """Train a classifier on the labelled videos of SHARDS, end to end; write checkpoints to RUN_DIR.

    Videos without a label are left out. Started again with the same settings, it continues from the last checkpoint;
    --from is not read again then. SIGTERM, SIGUSR1, Ctrl-C or a file RUN_DIR/stop saves and stops; RUN_DIR/finished or
    RUN_DIR/stopped tells the end. `cmd-eval recognition` tests the result.
    """
    import json

    from cmd_train.config import build_config, parse_overrides
    from cmd_train.recipes import AUXILIARY_MOTION, check_recipe

    check_recipe(recipe, finetune=True)
    given = given_fields(**named) | parse_overrides(pairs)
    config = build_config(recipe, {**(AUXILIARY_MOTION if auxiliary == "motion" else {}), **given})
    if config.model.motion_head != (auxiliary == "motion"):
        raise ValueError(f"model.motion_head: {config.model.motion_head} disagrees with --auxiliary {auxiliary}")
    if print_config:
        click.echo(json.dumps(config.as_dict(), indent=1))
        return
    folder, target = both_folders(shards, run_dir)
    if start is None:
        raise click.UsageError("Missing option '--from'; `--from scratch` starts new.")
    from cmd_train.engine.finetune import run_finetuning
    from cmd_train.monitoring.live_line import LiveLine

    source = None if start == SCRATCH else Path(start)
    with LiveLine() as live:
        result = run_finetuning(
            folder,
            target,
            config,
            start=source,
            device=device,
            say=live.say,
            live=live,
            recipe=recipe,
            deadline=deadline(max_hours),
            dry_run=dry_run,
        )
    if dry_run:
        return
    tell_end(result, target)
