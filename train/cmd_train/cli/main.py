"""The command line ``cmd-train``; slow imports are deferred until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cmd_extract.console.commands import CommandGroup
from cmd_train.cli.finetune import finetune
from cmd_train.cli.options import deadline, given_fields, report_outcome, require_places, training_options
from cmd_train.recipes import complete_recipe


@click.group(
    cls=CommandGroup,
    interrupted="Run the same command again to continue from the last checkpoint, if there is one.",
    context_settings={"show_default": True},
)
@click.version_option(package_name="context-motion-decoupling")
@click.option("--debug", is_flag=True, help="Show the traceback of errors.")
def main(debug: bool) -> None:
    """Train video backbones on shards written by cmd-extract.

    Exit codes: 0 success; 1 error, explained in one line; 2 wrong usage; 130 stopped before the end, run the same
    command again to continue (0 under torchrun, and under srun with several tasks).
    """


@main.command(short_help="Train a backbone without labels.")
@training_options
@click.option(
    "--recipe",
    default="ucf101",
    shell_complete=complete_recipe(finetune=False),
    help="Config preset; `cmd-train recipes` lists them.",
)
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    help="Initial weights: a run folder, a checkpoint or published weights.  [default: random weights]",
)
@click.option(
    "--init-part",
    type=click.Choice(["auto", "all", "backbone"]),
    default="auto",
    help="Part of --init to load; auto loads all of it if it contains more than a backbone.",
)
def pretrain(
    shards: tuple[Path | str, ...],
    run_dir: Path | None,
    cache: Path | None,
    cache_gb: float | None,
    recipe: str,
    device: str,
    init: Path | None,
    init_part: str,
    max_hours: float | None,
    print_config: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Pre-train a backbone on SHARDS without labels; write checkpoints to RUN_DIR.

    Several folders of SHARDS are used as one if they were extracted with the same settings. SHARDS may be a URL to
    which `cmd-extract publish` has copied them; they are then read through --cache.

    The same command continues from the last checkpoint, without reading --init again. SIGTERM, SIGUSR1, Ctrl-C or a
    file RUN_DIR/stop saves and stops the run; RUN_DIR/finished or RUN_DIR/stopped records how it ended.
    """
    import json

    from cmd_train.config import build_config
    from cmd_train.recipes import check_recipe

    check_recipe(recipe, finetune=False)
    config = build_config(recipe, given_fields(**options))
    if print_config:
        click.echo(json.dumps(config.as_dict(), indent=1))
        return
    folders, target = require_places(shards, run_dir, cache, cache_gb)
    from cmd_extract.console.progress import ProgressDisplay
    from cmd_train.engine.pretrain import InitRequest, run_pretraining

    with ProgressDisplay("train", "steps", plain_seconds=None) as progress:
        result = run_pretraining(
            folders,
            target,
            config,
            device=device,
            log=progress.log,
            progress=progress,
            init=InitRequest(source=init, part=init_part) if init else None,
            recipe=recipe,
            deadline=deadline(max_hours),
            dry_run=dry_run,
        )
    if not dry_run:
        report_outcome(result, target)


main.add_command(finetune)


@main.command(short_help="List the recipes, or show one.")
@click.argument("name", required=False, shell_complete=complete_recipe())
def recipes(name: str | None) -> None:
    """List the recipes, or print all settings of the recipe NAME."""
    import json

    from cmd_train.cli.recipes import list_recipes
    from cmd_train.config import build_config

    click.echo(json.dumps(build_config(name).as_dict(), indent=1) if name else list_recipes())


@main.command("import-weights", short_help="Convert published weights to a checkpoint.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--backbone",
    metavar="NAME",
    help="r2plus1d_26, r3d_26, c3d or r2plus1d_10.  [default: inferred from the parameter names]",
)
@click.option(
    "--init-part",
    "part",
    type=click.Choice(["auto", "all", "backbone"]),
    default="auto",
    help="Content of FILE: the complete pre-training network, or its backbone; auto infers it from the names.",
)
@click.option("--set", "pairs", multiple=True, metavar="SECTION.FIELD=VALUE", help="Override any setting; repeatable.")
def import_weights(file: Path, out_dir: Path, backbone: str | None, part: str, pairs: tuple[str, ...]) -> None:
    """Convert the published weights in FILE (.pth or .safetensors) to a checkpoint in OUT_DIR.

    Parameter names may have a common prefix. From larger files, such as those of MoCo, only the backbone is imported.
    Missing or unexpected names are an error that lists them.
    """
    from cmd_train.checkpoints.initial import detect_network, write_imported
    from cmd_train.checkpoints.published import backbone_part, read_weights_file
    from cmd_train.config import build_config, parse_overrides

    state = read_weights_file(file)
    found = None if backbone and part != "auto" else detect_network(state)
    complete = part == "all" or (part == "auto" and found is not None and found.complete)
    settings: dict[str, object] = {
        "model.backbone": backbone or (found and found.backbone),
        # The published network reads motion at crop resolution; a backbone alone reads none.
        "model.motion_input": "paper" if complete else "native",
        "model.context_head": complete,
        "model.motion_head": complete,
    }
    config = build_config("ucf101", settings | parse_overrides(pairs))
    path = write_imported(file, out_dir, config, state)
    what = "pre-training network" if complete else "backbone"
    count = len(state if complete else backbone_part(state))
    ignored = f" ({len(state) - count} others ignored)" if count < len(state) else ""
    click.echo(f"Imported {what} with {config.model.backbone}, {count} tensors{ignored}; checkpoint in {path}")


@main.command(short_help="Write a backbone and a model card.")
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["safetensors", "torchscript", "onnx"]),
    default="safetensors",
    help="Format of the weights; onnx needs the extra `onnx`.",
)
@click.option(
    "--names",
    type=click.Choice(["own", "torchvision"]),
    default="own",
    help="Parameter names; torchvision's where it can build the network (r3d_26).",
)
@click.option("--license", "license_name", help="License of the weights, for the model card.  [default: not stated]")
def export(run: Path, out: Path, **options: Any) -> None:
    """Write the backbone of RUN to the new folder OUT: weights, config.json and a model card (README.md).

    RUN is a run folder (for its last checkpoint), a checkpoint or published weights. OUT can be uploaded to a model hub
    as it is; in safetensors format, it can be used wherever a checkpoint can.
    """
    from cmd_train.export.backbone import export_backbone

    path = export_backbone(run, out, **options)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB; model card in {out / 'README.md'}")


@main.command(short_help="Print a Slurm batch script to edit.")
def sbatch() -> None:
    """Print a Slurm batch script to edit: its job stops before the time limit, is requeued, and continues."""
    from importlib.resources import files

    click.echo(files("cmd_train.cli").joinpath("slurm", "pretrain.sbatch").read_text("utf-8"), nl=False)
