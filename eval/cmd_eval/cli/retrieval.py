"""The commands ``retrieval``, ``baseline`` and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmd_eval.cli.options import (
    FOLDER,
    ONLY_COLUMN,
    OUTPUT_FILE,
    RUN_RESULTS,
    TRAINED_COLUMN,
    open_features_and_splits,
    output_option,
    result_path,
    retrieval_options,
    save_result,
    source_options,
    split_spec,
)
from cmd_eval.results.formats import FORMATS
from cmd_extract.console.commands import command_line
from cmd_extract.console.progress import ProgressDisplay

if TYPE_CHECKING:
    from cmd_eval.data.splits import EvalSplitSpec
    from cmd_eval.features.store import Features

_SPLIT_OPTIONS = (
    *("split_columns", "test_part", "train_part", "targets", "leave_one_out", "seed", "skip_copies", "exclude_same"),
)


@click.command(short_help="Evaluate retrieval by nearest neighbors: R@k.")
@source_options
@retrieval_options(TRAINED_COLUMN)
@output_option(RUN_RESULTS)
def retrieval(output: Path | None, per_class: bool, **options: Any) -> None:
    """Retrieve videos by nearest neighbors: R@1, 5, 10, 20 and 50, by cosine similarity.

    Give a features file of cmd-eval embed, or a checkpoint (or a run folder, for its last checkpoint) and a folder of
    shards. In the latter case the features are kept in the run folder and reused.
    """
    from cmd_eval.features.source import name_suffixes
    from cmd_eval.results.schema import result_name

    split_options = {name: options.pop(name) for name in _SPLIT_OPTIONS}
    features, spec = open_features_and_splits(split_options, **options)
    name = result_name("retrieval", spec.name, *name_suffixes(features.provenance))
    _retrieve(features, spec, result_path(features, name, output, options["eval_dir"]), per_class)


@click.command(short_help="Evaluate a hand-crafted baseline, without a network.")
@click.argument("shards", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--features",
    "descriptor",
    type=click.Choice(["motion", "color"]),
    default="motion",
    help="Descriptor of the motion grids, or color histogram of the frames.",
)
@click.option(
    "--write-features", "features_path", type=OUTPUT_FILE, help="Also write a features file, for cmd-eval probe."
)
@retrieval_options(ONLY_COLUMN)
@output_option("not written")
def baseline(
    shards: tuple[Path, ...],
    descriptor: str,
    features_path: Path | None,
    output: Path | None,
    per_class: bool,
    **split_options: Any,
) -> None:
    """Retrieve videos without a network, by a hand-crafted descriptor of the motion grids or by colors.

    The threshold, camera rule and centering of the motion descriptor were chosen with labels, on the training scenes of
    the gestures; on other videos they are used unchanged. The color histogram has no such settings.

    The result is printed; with --output it is also written to a file.
    """
    from cmd_eval.data.splits import eval_splits
    from cmd_eval.data.table import VideoTable
    from cmd_eval.features.handcrafted import color_histogram_features, motion_grid_features
    from cmd_eval.features.source import require_writable
    from cmd_eval.features.store import write_features
    from cmd_extract.shard.folders import open_folders

    shard_set = open_folders(shards)
    videos = VideoTable.of(shard_set.videos)
    spec = split_spec(videos, None, **split_options)
    eval_splits(videos, spec)
    for path, option in ((output, "--output"), (features_path, "--write-features")):
        if path is not None:
            require_writable(path.absolute().parent, f"choose another file with {option}")
    describe = {"motion": motion_grid_features, "color": color_histogram_features}[descriptor]
    with ProgressDisplay("describe") as display:
        features = describe(shard_set, command_line(), display.update)
    if features_path is not None:
        write_features(features_path, features)
        click.echo(f"Features written to {features_path}")
    _retrieve(features, spec, output, per_class)


def _retrieve(features: Features, spec: EvalSplitSpec, output: Path | None, per_class: bool) -> None:
    from cmd_eval.results.tables import class_table, retrieval_table
    from cmd_eval.tasks.run_retrieval import run_retrieval

    run = run_retrieval(features, spec, command_line())
    for note in run.notes:
        click.echo(note, err=True)
    click.echo(retrieval_table(run.record))
    if per_class:
        click.echo(class_table(run.record))
    if output is not None:
        save_result(output, run.record)


@click.command(short_help="Compare results, with paired differences.")
@click.argument("results", metavar="[NAME=]RESULT.json...", nargs=-1, required=True)
@click.option("--format", "style", type=click.Choice(FORMATS), default="table", help="Output format.")
def compare(results: tuple[str, ...], style: str) -> None:
    """Show results of retrieval, probe and recognition side by side, with chance and paired differences.

    The first result is the reference: differences to it are computed video by video, with an interval over groups of
    videos. Results with the same NAME are runs of one method with different seeds; the interval then covers other
    seeds, too. The name of a file without NAME is its stem.
    """
    from cmd_eval.results.formats import format_tables
    from cmd_eval.tasks.comparison import comparison_tables, pretext_lines, read_methods

    methods = read_methods(results)
    click.echo(format_tables(comparison_tables(methods), style))
    if style == "table" and (lines := pretext_lines(methods)):
        click.echo("\n" + "\n".join(lines))
