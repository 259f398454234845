"""The commands ``probe`` and ``recognition``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmd_eval.cli.options import (
    FOLDER,
    RUN_RESULTS,
    TRAINED_COLUMN,
    clips_option,
    device_option,
    open_features_and_splits,
    output_option,
    part_options,
    recorded_settings,
    require_single_process,
    resolve_columns,
    result_path,
    save_result,
    seed_option,
    skip_copies_option,
    source_options,
    split_columns_option,
    target_option,
    workers_option,
)
from cmd_extract.console.commands import command_line
from cmd_extract.console.progress import ProgressDisplay
from cmd_extract.console.tables import format_table

if TYPE_CHECKING:
    from cmd_eval.tasks.recognition import RecognitionRun

_SPLIT_OPTIONS = ("split_columns", "test_part", "train_part", "targets", "seed", "skip_copies")


@click.command(short_help="Train a simple classifier on frozen features.")
@source_options
@click.option(
    "--method",
    type=click.Choice(["logistic", "sgd", "knn"]),
    default="logistic",
    help="Logistic regression or k nearest neighbors on averaged features, or a linear layer trained by SGD on clips.",
)
@click.option(
    "--label-percent",
    "percents",
    type=click.FloatRange(0, 100, min_open=True, max_open=True),
    multiple=True,
    help="Also train with this percentage of the training labels, such as 1, 5 or 10; repeatable.",
)
@click.option("--draws", type=click.IntRange(1), default=5, help="Random draws of the labels for --label-percent.")
@split_columns_option(TRAINED_COLUMN)
@part_options("Part to test on.", "Part to train on.")
@target_option
@seed_option
@skip_copies_option
@click.option("--confusion", is_flag=True, help="Also print accuracy and confusion per class.")
@output_option(RUN_RESULTS)
def probe(
    method: str, percents: tuple[float, ...], draws: int, confusion: bool, output: Path | None, **options: Any
) -> None:
    """Train and test a simple classifier on frozen features.

    Give a features file, or a checkpoint and a folder of shards, as for cmd-eval retrieval. The hyperparameters
    (regularization C, learning rate and weight decay, or k) are selected by cross-validation on the training videos,
    with groups kept together.
    """
    from cmd_eval.features.source import name_suffixes
    from cmd_eval.results.schema import result_name
    from cmd_eval.results.tables import confusion_table, probe_table
    from cmd_eval.tasks.run_probe import LowLabelSpec, run_probe

    split_options = {name: options.pop(name) for name in _SPLIT_OPTIONS}
    features, spec = open_features_and_splits(split_options, **options)
    few = LowLabelSpec(percents=percents, draws=draws)
    name = result_name("probe", method, spec.name, few.name, *name_suffixes(features.provenance))
    path = result_path(features, name, output, options["eval_dir"])
    record = run_probe(features, spec, method, command_line(), few=few, device=options["device"])
    for note in record["notes"]:
        click.echo(note, err=True)
    click.echo(probe_table(record))
    if confusion:
        click.echo(confusion_table(record))
    if path is not None:
        save_result(path, record)


@click.command(short_help="Test fine-tuned networks: top-1 and top-5.")
@click.argument("checkpoints", metavar="CHECKPOINT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("shards", type=FOLDER)
@click.option(
    "--more-shards", multiple=True, type=FOLDER, help="Further folder of shards, as given in training; repeatable."
)
@click.option("--split-column", help=f"Split column of the manifest.  [default: {TRAINED_COLUMN}]")
@click.option("--test-part", default="test", help="Part to test on.")
@skip_copies_option
@clips_option
@workers_option
@device_option
@output_option("one file per checkpoint, in eval/ of its run folder")
def recognition(
    checkpoints: tuple[Path, ...],
    shards: Path,
    more_shards: tuple[Path, ...],
    split_column: str | None,
    output: Path | None,
    **options: Any,
) -> None:
    """Test networks fine-tuned by cmd-train finetune: top-1 and top-5, with the softmax averaged over clips.

    CHECKPOINT is a checkpoint, or a run folder for its last one. For several checkpoints, for example one per split,
    mean and spread are printed as well.
    """
    from cmd_eval.data.splits import EACH_COLUMN
    from cmd_eval.data.table import VideoTable
    from cmd_eval.features.embed import default_workers
    from cmd_eval.features.source import require_writable, run_folder
    from cmd_eval.results.schema import EVAL_FOLDER
    from cmd_eval.tasks.recognition import RecognitionSpec, evaluate_recognition, recognition_record
    from cmd_extract.shard.folders import open_folders

    require_single_process()
    options["workers"] = default_workers() if options["workers"] is None else options["workers"]
    folders = (shards, *more_shards)
    videos, given = VideoTable.of(open_folders(folders).videos), (split_column,) if split_column else ()
    runs: list[RecognitionRun] = []
    for checkpoint in checkpoints:
        require_writable(
            output.absolute().parent if output else run_folder(checkpoint) / EVAL_FOLDER,
            "choose another file with --output",
        )
        (column,) = resolve_columns(videos, given, recorded_settings(checkpoint), alternative=EACH_COLUMN)
        spec = RecognitionSpec(shards=folders, split_column=column, **options)
        with ProgressDisplay("classify") as display:
            run = evaluate_recognition(checkpoint, spec, command=command_line(), progress=display.update)
        runs.append(run)
        for note in run.notes:
            click.echo(note, err=True)
        click.echo(_summary(run))
        if output is None:
            save_result(run.result_path, recognition_record([run]))
    record = recognition_record(runs)
    if len(runs) > 1:
        for measure, name in (("top1", "top-1"), ("top5", "top-5")):
            mean = record["mean"][0][measure]
            click.echo(f"{name}: mean {mean['value']:.1%}, spread {mean['spread']:.1%} over {mean['splits']} results")
    if output is not None:
        save_result(output, record)


def _summary(run: RecognitionRun) -> str:
    split = run.split
    values = [
        f"{name} {split[measure]['value']:.1%} ({split[measure]['low']:.1%} to {split[measure]['high']:.1%})"
        for measure, name in (("top1", "top-1"), ("top5", "top-5"))
    ]
    chance = "unknown" if split["chance"] is None else f"{split['chance']:.1%}"
    rows = [
        [row["class"], f"{row['accuracy']:.1%}", f"{row['low']:.0%} to {row['high']:.0%}", str(row["test"])]
        for row in split["per_class"]
        if row["test"]
    ]
    head = f"{split['split_column']}: {', '.join(values)}, chance {chance}; {split['test']} test videos"
    return f"{head}\n{format_table(['class', 'accuracy', '95 % interval', 'test videos'], rows)}"
