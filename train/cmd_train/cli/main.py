"""The command line of training: ``cmd-train``. Heavy imports wait until a command needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cmd_train.cli.finetune import finetune
from cmd_train.cli.options import EXIT_INTERRUPTED, both_folders, deadline, given_fields, tell_end, training_options
from cmd_train.recipes import complete_recipe


class _Group(click.Group):
    """Turns the errors that users can mend into one line and an exit code, and leaves bugs their traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the work, not of the alphabet."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            # How --help ends; they are RuntimeErrors.
            raise
        except KeyboardInterrupt:
            again = "run the same command again to continue from the last checkpoint, if there is one"
            click.echo(f"interrupted; {again}", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except (ValueError, OSError, RuntimeError) as error:
            if ctx.params.get("debug"):
                raise
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"show_default": True})
@click.version_option(package_name="context-motion-decoupling")
@click.option("--debug", is_flag=True, help="Show the traceback of errors.")
def main(debug: bool) -> None:
    """Train video backbones from shards that cmd-extract has written.

    Exit codes: 0 all well; 2 wrong usage; 130 stopped before the end, the same command continues (0 under torchrun,
    and under srun with several tasks); 1 any other error, which one line explains.
    """


@main.command(short_help="Train a backbone without labels.")
@training_options
@click.option(
    "--recipe",
    default="ucf101",
    shell_complete=complete_recipe(finetune=False),
    help="Named settings; `cmd-train recipes` lists them.",
)
@click.option(
    "--init", type=click.Path(path_type=Path), help="Start from these weights: a published file or a checkpoint."
)
@click.option(
    "--init-part", type=click.Choice(["auto", "all", "backbone"]), default="auto", help="What to take of --init."
)
def pretrain(
    shards: Path | None,
    run_dir: Path | None,
    recipe: str,
    device: str,
    init: Path | None,
    init_part: str,
    max_hours: float | None,
    pairs: tuple[str, ...],
    print_config: bool,
    dry_run: bool,
    **named: Any,
) -> None:
    """Pre-train a backbone on SHARDS without labels; write checkpoints to RUN_DIR.

    Started again with the same settings, it continues from the last checkpoint; --init is not read again then.
    SIGTERM, SIGUSR1, Ctrl-C or a file RUN_DIR/stop saves and stops; RUN_DIR/finished or RUN_DIR/stopped tells the end.
    """
    import json

    from cmd_train.config import build_config, parse_overrides
    from cmd_train.recipes import check_recipe

    check_recipe(recipe, finetune=False)
    config = build_config(recipe, given_fields(**named) | parse_overrides(pairs))
    if print_config:
        click.echo(json.dumps(config.as_dict(), indent=1))
        return
    folder, target = both_folders(shards, run_dir)
    from cmd_train.engine.pretrain import InitRequest, run_pretraining
    from cmd_train.monitoring.live_line import LiveLine

    start = InitRequest(source=init, part=init_part) if init else None
    with LiveLine() as live:
        result = run_pretraining(
            folder,
            target,
            config,
            device=device,
            say=live.say,
            live=live,
            init=start,
            recipe=recipe,
            deadline=deadline(max_hours),
            dry_run=dry_run,
        )
    if dry_run:
        return
    tell_end(result, target)


main.add_command(finetune)


@main.command(short_help="List the recipes, or show one.")
@click.argument("name", required=False, shell_complete=complete_recipe())
def recipes(name: str | None) -> None:
    """List the recipes, or print every field of the one that is named."""
    import json

    from cmd_train.cli.recipes import list_recipes
    from cmd_train.config import build_config

    click.echo(json.dumps(build_config(name).as_dict(), indent=1) if name else list_recipes())


@main.command("import-weights", short_help="Turn published weights into a checkpoint.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--backbone", metavar="NAME", help="r2plus1d_26, r3d_26, c3d or r2plus1d_10.  [default: told by the names]"
)
@click.option(
    "--init-part",
    "--part",
    "part",
    type=click.Choice(["auto", "all", "backbone"]),
    default="auto",
    help="What FILE holds: the whole pre-training network, or its backbone; auto: as the names tell.",
)
@click.option("--set", "pairs", multiple=True, metavar="SECTION.FIELD=VALUE", help="Change any field; repeatable.")
def import_weights(file: Path, out_dir: Path, backbone: str | None, part: str, pairs: tuple[str, ...]) -> None:
    """Write published weights (FILE, .pth or .safetensors) to OUT_DIR as a checkpoint of this project.

    Names may carry a common prefix. Missing or unexpected names are an error that lists them.
    """
    from cmd_train.checkpoints.initial import detect_network, read_published, write_imported
    from cmd_train.config import build_config, parse_overrides

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
    path = write_imported(file, out_dir, config, state)
    what = "pre-training network" if whole else "backbone"
    click.echo(f"{what} with {config.model.backbone}, {len(state)} tensors; checkpoint in {path}")


@main.command(short_help="Print a Slurm batch script to edit.")
def sbatch() -> None:
    """Print a Slurm batch script to edit: a training that stops in time, is queued again, and continues."""
    from importlib.resources import files

    click.echo(files("cmd_train.cli").joinpath("slurm", "pretrain.sbatch").read_text("utf-8"), nl=False)
