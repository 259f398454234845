"""The command line of training: ``cmd-train``. Heavy imports wait until a command needs them."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from train.loop import TrainingResult

EXIT_INTERRUPTED = 130

# --max-hours counts from here, not from the first step: loading takes its time, too.
_STARTED = time.monotonic()


class _Group(click.Group):
    """Turns the errors that users can mend into one line and an exit code, and leaves bugs their traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted; run the same command again to continue from the last checkpoint", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except (ValueError, OSError, RuntimeError) as error:
            if ctx.params.get("debug"):
                raise
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"show_default": True})
@click.version_option(package_name="context-motion-decoupling")
@click.option("--debug", is_flag=True, help="Show the traceback of errors.")
def main(debug: bool) -> None:
    """Train video backbones from shards that cmd-extract has written."""


@main.command()
@click.argument("shards", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("run_dir", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option("--recipe", default="ucf101", help="Named settings; `cmd-train recipes` lists them.")
@click.option("--split-column", help="Train on one part of this split only.  [default: all videos]")
@click.option("--part", default="train", help="Part of the split to train on.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the videos.  [default: the recipe's]")
@click.option("--batch-size", type=click.IntRange(2), help="Samples a step, all ranks.  [default: the recipe's]")
@click.option("--seed", type=click.IntRange(0), default=0, help="Decides everything random.")
@click.option("--workers", type=click.IntRange(0), help="Decoding processes.  [default: the recipe's]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to compute.")
@click.option(
    "--init", type=click.Path(path_type=Path), help="Start from these weights: a published file or a checkpoint."
)
@click.option(
    "--init-part", type=click.Choice(["auto", "all", "backbone"]), default="auto", help="What to take of --init."
)
@click.option(
    "--max-hours", type=click.FloatRange(0, min_open=True), help="Save and stop after so long.  [default: no limit]"
)
@click.option("--set", "pairs", multiple=True, metavar="SECTION.FIELD=VALUE", help="Change any field; repeatable.")
@click.option("--print-config", is_flag=True, help="Print the resolved settings and stop; needs no SHARDS.")
def pretrain(
    shards: Path | None,
    run_dir: Path | None,
    recipe: str,
    split_column: str | None,
    part: str,
    epochs: int | None,
    batch_size: int | None,
    seed: int,
    workers: int | None,
    device: str,
    init: Path | None,
    init_part: str,
    max_hours: float | None,
    pairs: tuple[str, ...],
    print_config: bool,
) -> None:
    """Pre-train a backbone on SHARDS without labels; write checkpoints to RUN_DIR.

    Started again with the same settings, it continues from the last checkpoint; --init is not read again then.
    SIGTERM, SIGUSR1, Ctrl-C or a file RUN_DIR/stop saves and stops; RUN_DIR/stopped or RUN_DIR/finished tells the end.
    """
    import json

    from train.config import build_config, parse_overrides

    named = {
        "data.split_column": split_column,
        "data.part": part,
        "optim.epochs": epochs,
        "optim.batch_size": batch_size,
        "run.seed": seed,
        "data.workers": workers,
    }
    given = {key: value for key, value in named.items() if value is not None}
    config = build_config(recipe, given | parse_overrides(pairs))
    if print_config:
        click.echo(json.dumps(config.as_dict(), indent=1))
        return
    if shards is None or run_dir is None:
        raise click.UsageError(f"Missing argument '{'SHARDS' if shards is None else 'RUN_DIR'}'.")
    from train.live_line import LiveLine
    from train.pretrain import InitRequest, run_pretraining

    start = InitRequest(source=init, part=init_part) if init else None
    with LiveLine() as live:
        result = run_pretraining(
            shards,
            run_dir,
            config,
            device=device,
            say=live.say,
            live=live,
            init=start,
            recipe=recipe,
            deadline=_deadline(max_hours),
        )
    _tell_end(result, run_dir)


def _deadline(max_hours: float | None) -> float:
    return math.inf if max_hours is None else _STARTED + 3600 * max_hours


def _tell_end(result: TrainingResult, run_dir: Path) -> None:
    """Prints how a training has ended, once, and ends this process accordingly."""
    import os

    from train.distributed import find_seat

    seat = find_seat(os.environ)
    if seat.rank == 0 and result.finished:
        click.echo(f"trained {result.steps} steps; checkpoint in {run_dir}")
    if result.finished:
        return
    if seat.rank == 0:
        click.echo(f"stopped after step {result.steps}; run the same command again to continue", err=True)
    # A launcher would take it for a failure, and torchrun would start all again.
    raise SystemExit(0 if seat.launched else EXIT_INTERRUPTED)


@main.command()
def sbatch() -> None:
    """Print a Slurm batch script to edit: pre-training that stops in time, is queued again, and continues."""
    from importlib.resources import files

    click.echo(files("train").joinpath("slurm", "pretrain.sbatch").read_text("utf-8"), nl=False)


@main.command("import-weights")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--backbone", help="r2plus1d_26, r3d_26, c3d or r2plus1d_10.  [default: told by the names]")
@click.option(
    "--part",
    type=click.Choice(["auto", "all", "backbone"]),
    default="auto",
    help="The whole pre-training network, or its backbone; auto: as the names tell.",
)
@click.option("--set", "pairs", multiple=True, metavar="SECTION.FIELD=VALUE", help="Change any field; repeatable.")
def import_weights(file: Path, out_dir: Path, backbone: str | None, part: str, pairs: tuple[str, ...]) -> None:
    """Write published weights (FILE, .pth or .safetensors) to OUT_DIR as a checkpoint of this project.

    Names may carry a common prefix. Missing or unexpected names are an error that lists them.
    """
    from train.build import build_model
    from train.config import build_config, parse_overrides
    from train.initial_weights import detect_network, read_published, write_imported

    state = read_published(file)
    found = None if backbone and part != "auto" else detect_network(state)
    whole = part == "all" or (part == "auto" and found is not None and found.whole)
    changes: dict[str, object] = {
        "model.backbone": backbone or (found and found.backbone),
        # The published network reads motion at the crop's resolution; a backbone alone reads none.
        "model.motion_input": "paper" if whole else "native",
        "model.context_head": whole,
        "model.motion_head": whole,
    }
    config = build_config("ucf101", changes | parse_overrides(pairs))
    path = write_imported(file, out_dir, config, state, build=build_model)
    what = "pre-training network" if whole else "backbone"
    click.echo(f"{what} with {config.model.backbone}, {len(state)} tensors; checkpoint in {path}")


@main.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the recipes, or print every field of the one that is named."""
    import json

    from train.config import build_config
    from train.recipes import list_recipes

    click.echo(json.dumps(build_config(name).as_dict(), indent=1) if name else list_recipes())
