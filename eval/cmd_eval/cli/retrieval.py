"""The commands ``retrieval``, ``baseline`` and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmd_eval.cli.options import (
    WITH_TRAINING,
    check_question,
    command_words,
    open_named,
    output_option,
    question_options,
    show_progress,
    source_options,
)

if TYPE_CHECKING:
    from cmd_eval.features.store import Features
    from cmd_eval.tasks.run_retrieval import Question


@click.command(short_help="Recall of videos by nearest neighbours.")
@source_options
@question_options
@output_option(WITH_TRAINING)
def retrieval(
    source: Path,
    shards: Path | None,
    clips: int | None,
    untrained: bool,
    workers: int,
    device: str,
    fresh: bool,
    output: Path | None,
    per_class: bool,
    **asked: Any,
) -> None:
    """Retrieve videos by nearest neighbours: R@1, 5, 10, 20 and 50, by cosine similarity.

    Give a features file of cmd-eval embed; or a checkpoint (or a training's folder, for its last one) and a folder of
    shards: then the features are kept in the training's folder, eval/, and used again. The result is written there
    unless --output says otherwise.
    """
    from cmd_eval.features.source import name_words, result_folder
    from cmd_eval.results.schema import result_name

    question = _question(**asked)
    check_question(shards, question)
    features = open_named(
        source=source, shards=shards, untrained=untrained, clips=clips, device=device, workers=workers, fresh=fresh
    )
    name = result_name("retrieval", question.name, *name_words(features.provenance))
    folder = result_folder(features)
    target = output or (folder and folder / name)
    _run(features, question, target, per_class)


@click.command(short_help="Retrieval without any training.")
@click.argument("shards", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--features",
    "descriptor",
    type=click.Choice(["motion", "color"]),
    default="motion",
    help="A hand-made descriptor of the motion grids, or a colour histogram of the frames.",
)
@click.option(
    "--write-features",
    "features_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the descriptors to this features file, for cmd-eval probe.",
)
@question_options
@output_option("printed only")
def baseline(
    shards: Path, descriptor: str, features_path: Path | None, output: Path | None, per_class: bool, **asked: Any
) -> None:
    """Retrieve without any training: by a descriptor of the motion grids, the mark to beat; or by colours alone.

    The result is printed, and written where --output says.
    """
    from cmd_eval.features import color_descriptor, motion_descriptor
    from cmd_eval.features.store import write_features
    from cmd_extract.shard.reader import ShardSet

    question = _question(**asked)
    describe = {"motion": motion_descriptor.describe_videos, "color": color_descriptor.describe_videos}[descriptor]
    features = describe(ShardSet(shards), command_words(), show_progress("describe"))
    if features_path is not None:
        clips = features.mean_VF[:, None]
        write_features(features_path, features.videos, features.provenance, [clips], *clips.shape[1:])
        click.echo(f"features written to {features_path}")
    _run(features, question, output, per_class)


def _question(
    split_columns: tuple[str, ...],
    query_part: str,
    gallery_part: str,
    kinds: tuple[str, ...],
    leave_one_out: bool,
    seed: int,
) -> Question:
    from cmd_eval.tasks.run_retrieval import Question

    return Question(
        split_columns=tuple(dict.fromkeys(split_columns)),
        query_part=query_part,
        gallery_part=gallery_part,
        kinds=tuple(dict.fromkeys(kinds)),
        leave_one_out=leave_one_out,
        seed=seed,
    )


def _run(features: Features, question: Question, target: Path | None, per_class: bool) -> None:
    from cmd_eval.results.schema import write_result
    from cmd_eval.results.tables import class_table, retrieval_table
    from cmd_eval.tasks.run_retrieval import run_retrieval

    run = run_retrieval(features, question, command_words())
    for note in run.notes:
        click.echo(note, err=True)
    click.echo(retrieval_table(run.record))
    if per_class:
        click.echo(class_table(run.record))
    if target is not None:
        write_result(target, run.record)
        click.echo(f"written to {target}")


@click.command(short_help="Several retrieval results in one table.")
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def compare(results: tuple[Path, ...]) -> None:
    """Show the JSON files of several retrieval runs in one table, beside chance."""
    from cmd_eval.results.comparison import comparison_table

    click.echo(comparison_table(results))
