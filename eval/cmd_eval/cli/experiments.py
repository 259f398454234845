"""The commands ``decoupling``, ``auxiliary`` and ``evidence``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmd_eval.cli.options import (
    FILE,
    FILE_OR_FOLDER,
    FOLDER,
    ONLY_COLUMN,
    OUTPUT_FOLDER,
    TRAINED_COLUMN,
    clips_option,
    device_option,
    fresh_option,
    open_selected_features,
    output_option,
    part_options,
    recorded_settings,
    resolve_columns,
    save_result,
    seed_option,
    set_option,
    split_columns_option,
    workers_option,
)
from cmd_extract.console.commands import command_line
from cmd_extract.console.progress import ProgressDisplay
from cmd_train.recipes import complete_recipe

if TYPE_CHECKING:
    from cmd_eval.experiments.plan import EvidenceSize

_SIZE_DEFAULT = "[default: from --size]"


@click.command(short_help="Compare networks with one pretext head and with both.")
@click.argument("shards", nargs=-1, required=True, type=FOLDER)
@click.option("--both", type=FILE_OR_FOLDER, help="Checkpoint or run folder of a network with both heads.")
@click.option("--context", type=FILE_OR_FOLDER, help="The same with the context head only.")
@click.option("--motion", type=FILE_OR_FOLDER, help="The same with the motion head only.")
@click.option("--with-untrained", is_flag=True, help="Add the first network with randomly initialized weights.")
@click.option("--with-grids", is_flag=True, help="Add the hand-crafted descriptor of the motion grids.")
@split_columns_option(TRAINED_COLUMN)
@part_options("Query and test split, by label.", "Gallery and training split, by label.")
@clips_option
@seed_option
@workers_option
@device_option
@fresh_option
@output_option("eval/ in the first run folder")
def decoupling(
    shards: tuple[Path, ...],
    both: Path | None,
    context: Path | None,
    motion: Path | None,
    with_untrained: bool,
    with_grids: bool,
    split_columns: tuple[str, ...],
    test_part: str,
    train_part: str,
    seed: int,
    output: Path | None,
    **embedding: Any,
) -> None:
    """Test whether the two pretext tasks separate: retrieval and a probe by motion label and by context, in one table.

    By label, splits keep scenes apart; by context (the group), retrieval is leave-one-out, and the probe uses folds of
    all videos. The features of each network are cached in its run folder.
    """
    from cmd_eval.data.table import VideoTable
    from cmd_eval.experiments.decoupling import (
        HEADS,
        DecouplingSpec,
        check_heads,
        decoupling_splits,
        decoupling_table,
        measure_decoupling,
    )
    from cmd_eval.features.handcrafted import motion_grid_features
    from cmd_eval.features.source import name_suffixes, require_writable, run_folder
    from cmd_eval.features.store import MOTION_GRIDS
    from cmd_eval.results.schema import EVAL_FOLDER, result_name
    from cmd_extract.shard.folders import open_folders

    given = {name: path for name, path in zip(HEADS, (both, context, motion), strict=True) if path}
    if not given:
        raise click.UsageError("Give at least one of --both, --context and --motion.")
    first = next(iter(given.values()))
    shard_set = open_folders(shards)
    videos = VideoTable.of(shard_set.videos)
    columns = resolve_columns(videos, split_columns, None if split_columns else recorded_settings(first))
    spec = DecouplingSpec(split_columns=columns, test_part=test_part, train_part=train_part, seed=seed)
    decoupling_splits(videos, spec)  # not after hours of embedding
    for name, path in given.items():
        check_heads(name, path)
    folder = run_folder(first) / EVAL_FOLDER
    require_writable(output.absolute().parent if output else folder, "choose another file with --output")
    networks = {name: open_selected_features(source=path, shards=shards, **embedding) for name, path in given.items()}
    if with_untrained:
        networks["untrained"] = open_selected_features(source=first, shards=shards, untrained=True, **embedding)
    if with_grids:
        with ProgressDisplay("describe") as display:
            networks[MOTION_GRIDS] = motion_grid_features(shard_set, command_line(), display.update)
    record = measure_decoupling(networks, spec, command_line())
    for note in record["notes"]:
        click.echo(note, err=True)
    click.echo(decoupling_table(record))
    name = result_name("decoupling", spec.name, *name_suffixes(networks[next(iter(given))].provenance))
    save_result(output or folder / name, record)


@click.command(short_help="Measure the effect of motion prediction as an auxiliary loss.")
@click.argument("shards", nargs=-1, required=True, type=FOLDER)
@click.argument("out", type=OUTPUT_FOLDER)
@click.option(
    "--recipe",
    default="finetune-ucf101",
    shell_complete=complete_recipe(finetune=True),
    help="Config preset; `cmd-train recipes` lists them.",
)
@split_columns_option(ONLY_COLUMN)
@click.option("--test-part", default="test", help="Part to test on.")
@click.option("--seeds", type=click.IntRange(1), default=3, help="Number of random seeds, starting at 0.")
@clips_option
@set_option
@device_option
def auxiliary(shards: tuple[Path, ...], split_columns: tuple[str, ...], **options: Any) -> None:
    """Measure the effect of motion prediction as an auxiliary loss of supervised training from scratch.

    Runs cmd-train finetune --from scratch with and without --auxiliary motion for every seed and split, all else being
    equal, and tests all networks. Prints the difference in top-1 with its interval and writes OUT/eval/auxiliary.json.
    The runs are in OUT. Run again, the command keeps finished runs and continues an interrupted one.
    """
    from cmd_eval.data.table import VideoTable
    from cmd_eval.experiments.auxiliary import Comparison, auxiliary_table, compare_auxiliary
    from cmd_extract.shard.folders import open_folders

    columns = resolve_columns(VideoTable.of(open_folders(shards).videos), split_columns)
    comparison = Comparison(shards=shards, split_columns=columns, **options)
    run = compare_auxiliary(comparison, command=command_line(), log=_log)
    click.echo(auxiliary_table(run.pairs))
    difference = run.difference
    click.echo(
        f"Motion prediction changes top-1 by {100 * difference.value:+.1f} points "
        f"(95 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f}, {difference.pairs} pairs of runs)"
    )
    for note in run.record["notes"]:
        click.echo(note)
    click.echo(f"Result written to {run.result_path}")


@click.command(short_help="Test the paper's claims on your own videos.")
@click.argument("shards", nargs=-1, required=True, type=FOLDER)
@click.argument("out", type=OUTPUT_FOLDER)
@click.option(
    "--size", type=click.Choice(["small", "full"]), default="small", help="Sizes of the runs; full needs a GPU."
)
@split_columns_option("all in the shards")
@click.option("--steps", type=click.IntRange(1), help=f"Steps per pre-training run.  {_SIZE_DEFAULT}")
@click.option("--seeds", type=click.IntRange(1), help=f"Pre-training runs per split with both heads.  {_SIZE_DEFAULT}")
@click.option(
    "--single-seeds",
    type=click.IntRange(0),
    help=f"Pre-training runs per split of each network with a single head; 0 skips them.  {_SIZE_DEFAULT}",
)
@click.option("--auxiliary-steps", type=click.IntRange(1), help=f"Steps per supervised run.  {_SIZE_DEFAULT}")
@click.option(
    "--auxiliary-seeds",
    type=click.IntRange(0),
    help=f"Supervised runs of each kind per split; 0 skips them.  {_SIZE_DEFAULT}",
)
@click.option(
    "--recipe",
    shell_complete=complete_recipe(finetune=False),
    help=f"Config preset of the pre-training runs; disables the changes made by --size.  {_SIZE_DEFAULT}",
)
@click.option(
    "--auxiliary-recipe",
    shell_complete=complete_recipe(finetune=True),
    help=f"Config preset of the supervised runs; disables the changes made by --size.  {_SIZE_DEFAULT}",
)
@click.option("--clips", type=click.IntRange(1), help=f"Evenly spaced clips per video in evaluation.  {_SIZE_DEFAULT}")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.FIELD=VALUE",
    help="Override any setting of the pre-training runs; repeatable.",
)
@click.option(
    "--auxiliary-set",
    "auxiliary_overrides",
    multiple=True,
    metavar="SECTION.FIELD=VALUE",
    help="Override any setting of the supervised runs; repeatable.",
)
@click.option(
    "--bench",
    type=FILE,
    help="Result file of the benchmarks, for the extraction speed.  [default: as in an earlier result, if any]",
)
@click.option(
    "--jobs",
    "at_once",
    type=click.IntRange(1),
    default=1,
    help="Parallel training runs, each with its share of the cores.",
)
@seed_option
@device_option
def evidence(
    shards: tuple[Path, ...],
    out: Path,
    size: str,
    split_columns: tuple[str, ...],
    overrides: tuple[str, ...],
    auxiliary_overrides: tuple[str, ...],
    bench: Path | None,
    at_once: int,
    device: str,
    seed: int,
    **changes: Any,
) -> None:
    """Test the paper's claims on your own labeled videos, in one table.

    Pre-trains networks with both heads and with either one on the training part of each split; evaluates retrieval by
    label (over splits) and by group (leave-one-out); compares with untrained networks, the motion grids and colors;
    trains with labels from scratch, with and without motion prediction, and from pre-trained weights. The runs are in
    OUT, the result is written to OUT/eval/evidence.json, its tables to OUT/eval/evidence.md. Run again, the command
    keeps finished runs and continues an interrupted one.
    """
    from cmd_eval.experiments.benchmark_results import read_extraction_speed
    from cmd_eval.experiments.plan import SIZES, make_plan
    from cmd_eval.experiments.run import RunOptions, run_evidence
    from cmd_eval.results.tables import evidence_table
    from cmd_extract.shard.folders import open_folders

    speed = read_extraction_speed(bench) if bench else None
    plan = make_plan(
        open_folders(shards),
        out,
        size,
        _changed(SIZES[size], **changes),
        split_columns=split_columns,
        overrides=overrides,
        auxiliary_overrides=auxiliary_overrides,
        device=device,
    )
    run = run_evidence(plan, RunOptions(command=command_line(), log=_log, at_once=at_once, seed=seed), speed=speed)
    for note in run.record["notes"]:
        _log(note)
    click.echo(evidence_table(run.record))
    click.echo(f"Result written to {run.result_path}; create a report with `cmd-eval report {out}`")


def _changed(size: EvidenceSize, **changes: Any) -> EvidenceSize:
    """Change some values of a size. Fewer seeds for both heads also limit the seeds of the other runs."""
    given = {name: value for name, value in changes.items() if value is not None}
    if "recipe" in given:
        given["changes"] = ()
    if "auxiliary_recipe" in given:
        given["auxiliary_changes"] = ()
    if "seeds" in given:
        given.setdefault("single_seeds", min(size.single_seeds, given["seeds"]))
        given.setdefault("auxiliary_seeds", min(size.auxiliary_seeds, given["seeds"]))
    return replace(size, **given)


def _log(text: str) -> None:
    click.echo(text, err=True)
