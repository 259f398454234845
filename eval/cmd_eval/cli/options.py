"""Options shared by the commands of ``cmd-eval``, and how they select features and splits; imports nothing slow."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmd_eval.features.readout import READOUTS
from cmd_extract.console.commands import command_line
from cmd_extract.console.progress import ProgressDisplay

if TYPE_CHECKING:
    from cmd_eval.data.splits import EvalSplitSpec
    from cmd_eval.data.table import VideoTable
    from cmd_eval.features.store import Features

Command = Callable[..., None]

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FILE_OR_FOLDER = click.Path(exists=True, path_type=Path)
OUTPUT_FILE = click.Path(dir_okay=False, path_type=Path)
OUTPUT_FOLDER = click.Path(file_okay=False, path_type=Path)
ONLY_COLUMN = "the only one in the shards"
TRAINED_COLUMN = f"the one of the training run, or {ONLY_COLUMN}"
"""Default split columns without and with a network."""
RUN_RESULTS = "eval/ in the run folder; next to FEATURES.h5 if that is absent or cannot be written"
"""Default location of results."""

device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Compute device."
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(0),
    help="Decoding processes; 0 decodes in the main process.  [default: one per core]",
)
_PRECISION_HELP = "Precision of the network; bf16 is faster on recent GPUs, and its features differ slightly."
precision_option = click.option(
    "--precision", type=click.Choice(["float32", "bf16"]), default="float32", help=_PRECISION_HELP
)
batch_size_option = click.option(
    "--batch-size", type=click.IntRange(1), help="Clips per batch.  [default: 64 on a GPU, 16 on a CPU]"
)
eval_dir_option = click.option(
    "--eval-dir", type=OUTPUT_FOLDER, help=f"Folder for cached features and results.  [default: {RUN_RESULTS}]"
)
clips_option = click.option("--clips", type=click.IntRange(1), default=10, help="Evenly spaced clips per video.")
readout_option = click.option(
    "--readout",
    type=click.Choice(list(READOUTS)),
    help="Feature of a video: mean of the pooled clip features, their concatenation (ordered), the token map on a "
    "2 x 2 grid (mean or concatenated), or predicted motion directions.  [default: mean, or as in the features file]",
)
standardize_option = click.option(
    "--standardize", is_flag=True, help="Standardize each feature with the gallery's mean and standard deviation."
)
untrained_option = click.option("--untrained", is_flag=True, help="Use randomly initialized weights.")
fresh_option = click.option("--fresh", is_flag=True, help="Recompute features.")
seed_option = click.option("--seed", type=click.IntRange(0), default=0, help="Random seed.")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.FIELD=VALUE", help="Override any setting; repeatable."
)
target_option = click.option(
    "--target",
    "targets",
    type=click.Choice(["label", "group"]),
    multiple=True,
    default=["label"],
    help="Evaluate by label or by group; repeat it for both.",
)


def split_columns_option(default: str) -> Callable[[Command], Command]:
    """Add the repeatable ``--split-column``; ``default`` describes what happens without it."""
    text = f"Split column of the manifest; repeat it for the mean over several.  [default: {default}]"
    return click.option("--split-column", "split_columns", multiple=True, help=text)


def part_options(test_help: str, train_help: str) -> Callable[[Command], Command]:
    """Add ``--test-part`` and ``--train-part``."""

    def add(command: Command) -> Command:
        command = click.option("--train-part", default="train", help=train_help)(command)
        return click.option("--test-part", default="test", help=test_help)(command)

    return add


def output_option(default: str) -> Callable[[Command], Command]:
    """Add ``--output`` for the result file; ``default`` describes what happens without it."""
    return click.option("--output", type=OUTPUT_FILE, help=f"Result file (JSON).  [default: {default}]")


def source_options(command: Command) -> Command:
    """Add arguments and options that select features: a features file, or a checkpoint and shards."""
    for option in (
        fresh_option,
        eval_dir_option,
        device_option,
        workers_option,
        batch_size_option,
        click.option(
            "--precision",
            type=click.Choice(["float32", "bf16"]),
            help=f"{_PRECISION_HELP}  [default: float32, or as in FEATURES.h5]",
        ),
        untrained_option,
        standardize_option,
        readout_option,
        click.option(
            "--clips",
            type=click.IntRange(1),
            help="Evenly spaced clips per video.  [default: 10, or as in FEATURES.h5]",
        ),
        click.argument("shards", nargs=-1, type=FOLDER),
        click.argument("source", metavar="FEATURES.h5|CHECKPOINT", type=FILE_OR_FOLDER),
    ):
        command = option(command)
    return command


skip_copies_option = click.option(
    "--skip-copies", is_flag=True, help="Leave out test videos that are copies of training videos, and count them."
)


def retrieval_options(default_column: str) -> Callable[[Command], Command]:
    """Add options that select queries and gallery, and what to print."""

    def add(command: Command) -> Command:
        for option in (
            click.option("--per-class", is_flag=True, help="Also print R@1 and R@5 per class."),
            seed_option,
            skip_copies_option,
            click.option(
                "--exclude-same",
                type=click.Choice(["group", "source"]),
                help="Exclude gallery videos of the query's group or source file.",
            ),
            click.option("--leave-one-out", is_flag=True, help="Leave-one-out over all videos; ignores splits."),
            target_option,
            part_options("Query split.", "Gallery split."),
            split_columns_option(default_column),
        ):
            command = option(command)
        return command

    return add


def save_result(path: Path, record: Mapping[str, Any]) -> None:
    """Write a result file and print its path."""
    from cmd_eval.results.files import write_result

    write_result(path, record)
    click.echo(f"Result written to {path}")


def require_single_process() -> None:
    """Check that the command runs once, not in each process of torchrun or srun.

    Raises:
        ValueError: it is one of several processes.
    """
    from cmd_train.distributed.process_group import read_launch_info

    count = read_launch_info(os.environ).world_size
    if count > 1:
        raise ValueError(
            f"this command was started in {count} processes by torchrun or srun; only `cmd-eval embed` uses several: "
            "run it first, and this command on its features, in one process"
        )


def open_selected_features(**selected: Any) -> Features:
    """Open the features selected by ``source_options``; they are computed first if necessary."""
    from cmd_eval.features.source import FeatureSource, open_features

    require_single_process()
    with ProgressDisplay("embed") as display:
        return open_features(FeatureSource(**selected), command_line(), display.update)


def open_features_and_splits(
    split_options: Mapping[str, Any], *, source: Path, shards: tuple[Path, ...], **selected: Any
) -> tuple[Features, EvalSplitSpec]:
    """Open the selected features and resolve the splits, which are checked before features are computed.

    Args:
        split_options: values of the options that select splits.
        source, shards, selected: values of ``source_options``.

    Raises:
        ValueError: the features or the splits are invalid.
    """
    from cmd_eval.data.splits import eval_splits
    from cmd_eval.data.table import VideoTable
    from cmd_extract.shard.folders import open_folders
    from cmd_train.checkpoints.files import follow_best

    if not shards or follow_best(source).is_file():
        features = open_selected_features(source=source, shards=shards, **selected)
        return features, split_spec(features.videos, features.provenance.settings, **split_options)
    videos = VideoTable.of(open_folders(shards).videos)
    spec = split_spec(videos, None if split_options["split_columns"] else recorded_settings(source), **split_options)
    eval_splits(videos, spec)
    return open_selected_features(source=source, shards=shards, **selected), spec


def result_path(features: Features, name: str, output: Path | None, eval_dir: Path | None) -> Path | None:
    """Return where a result will be written, after checking that this is possible; report an unusual folder.

    Args:
        features: the features that are evaluated.
        name: name of the file.
        output: value of ``--output``.
        eval_dir: value of ``--eval-dir``.

    Raises:
        ValueError: the folder cannot be written to.
    """
    from cmd_eval.features.source import require_writable, result_folder

    if output is not None:
        require_writable(output.absolute().parent, "choose another file with --output")
        return output
    folder = result_folder(features, eval_dir)
    for note in folder.notes:
        click.echo(note, err=True)
    return folder.path and folder.path / name


def recorded_settings(checkpoint: Path) -> Mapping[str, Any] | None:
    """Return the training configuration of a checkpoint or of the last checkpoint in a run folder.

    Raises:
        ValueError: there is no checkpoint.
    """
    from cmd_train.checkpoints.files import CONFIG_NAME, find_checkpoint

    settings: Mapping[str, Any] | None = json.loads((find_checkpoint(checkpoint) / CONFIG_NAME).read_text("utf-8")).get(
        "settings"
    )
    return settings


def split_spec(
    videos: VideoTable, settings: Mapping[str, Any] | None, *, split_columns: Sequence[str], **options: Any
) -> EvalSplitSpec:
    """Return the splits to evaluate.

    Args:
        videos: the videos to evaluate.
        settings: training configuration of the network; None if there is none.
        split_columns: values of ``--split-column``.
        options: values of the other options.

    Raises:
        UsageError: a split column is given for leave-one-out.
        ValueError: see ``resolve_columns``.
    """
    from cmd_eval.data.splits import ALL_VIDEOS, SEVERAL_COLUMNS, EvalSplitSpec

    options["targets"] = tuple(dict.fromkeys(options["targets"]))
    if options.get("leave_one_out"):
        if split_columns:
            raise click.UsageError("--leave-one-out uses all videos and cannot be combined with --split-column.")
        return EvalSplitSpec(**options)
    alternative = ALL_VIDEOS if "leave_one_out" in options else SEVERAL_COLUMNS
    columns = resolve_columns(videos, split_columns, settings, alternative=alternative)
    return EvalSplitSpec(split_columns=columns, **options)


def resolve_columns(
    videos: VideoTable,
    split_columns: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    *,
    alternative: str | None = None,
) -> tuple[str, ...]:
    """Return the split columns to evaluate; a default is reported on standard error.

    The default is the split column that the network was trained on, if the videos have it, so that it is not tested on
    its own training videos; otherwise it is the only split column of the videos.

    Args:
        videos: the videos to evaluate.
        split_columns: values of ``--split-column``; empty for the default.
        settings: training configuration of the network; None if there is none.
        alternative: what to do instead of choosing one column, for the error message; None for choosing several.

    Raises:
        ValueError: a column does not exist, or there is no default because the videos have several columns or none.
    """
    from cmd_eval.data.splits import SEVERAL_COLUMNS, choose_split_columns

    trained_on = (settings or {}).get("data", {}).get("split_column")
    if not split_columns and trained_on in videos.splits:
        click.echo(f"Split column: {trained_on}, as in the training run", err=True)
        return (trained_on,)
    columns = choose_split_columns(videos, split_columns, alternative=alternative or SEVERAL_COLUMNS)
    if not split_columns:
        click.echo(f"Split column: {columns[0]}, {ONLY_COLUMN}", err=True)
    return columns
