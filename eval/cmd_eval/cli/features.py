"""The commands ``embed``, ``probe``, ``search`` and ``decoupling``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cmd_eval.cli.options import (
    WITH_TRAINING,
    check_question,
    command_words,
    fresh_option,
    kind_option,
    model_options,
    open_named,
    output_option,
    seed_option,
    show_progress,
    source_options,
    split_option,
)

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_PATH = click.Path(exists=True, path_type=Path)
_TARGET = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Write the features of all videos.")
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("shards", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", metavar="OUT.h5", type=click.Path(dir_okay=False, path_type=Path))
@model_options
def embed(checkpoint: Path, shards: Path, out: Path, fresh: bool, **chosen: Any) -> None:
    """Write the features of all videos of SHARDS: of each clip, and their mean.

    CHECKPOINT is a checkpoint, or a training's folder for its last one. Started again after an interruption it
    continues; what is done so far lies in OUT.h5.partial.
    """
    from cmd_eval.features.embed import ModelChoice, embed_to_file
    from cmd_extract.shard.reader import ShardSet

    choice = ModelChoice(checkpoint=checkpoint, **chosen)
    if out.exists() and not fresh:
        click.echo(
            f"{out} is there already; nothing is computed if it is of this checkpoint and these shards", err=True
        )
    features = embed_to_file(out, choice, ShardSet(shards), command_words(), show_progress("embed"), fresh=fresh)
    videos, width = features.mean_VF.shape
    click.echo(f"{videos} videos, {choice.clips} clips each, {width} features; in {out}")


@click.command(short_help="Classify by frozen features: linear or k-NN.")
@source_options
@click.option("--method", type=click.Choice(["linear", "knn"]), default="linear", help="The classifier.")
@split_option
@click.option("--test", "query_part", default="test", help="Part that is tested.")
@click.option("--train", "gallery_part", default="train", help="Part that is trained on.")
@kind_option
@seed_option
@click.option("--confusion", is_flag=True, help="Print accuracy and confusion of each class, too.")
@output_option(WITH_TRAINING)
def probe(
    method: str,
    split_columns: tuple[str, ...],
    query_part: str,
    gallery_part: str,
    kinds: tuple[str, ...],
    seed: int,
    confusion: bool,
    output: Path | None,
    **named: Any,
) -> None:
    """Test what a simple classifier on frozen features can tell: a linear one, or k nearest neighbours.

    Give a features file, or a checkpoint and a folder of shards, as for cmd-eval retrieval. The classifier's setting
    (regularisation C, or k) is chosen on parts of the training videos; where these have groups, no group is parted.
    """
    from cmd_eval.features.source import name_words, result_folder
    from cmd_eval.results.schema import result_name, write_result
    from cmd_eval.results.tables import confusion_table, probe_table
    from cmd_eval.tasks.run_probe import run_probe
    from cmd_eval.tasks.run_retrieval import Question

    question = Question(
        split_columns=tuple(dict.fromkeys(split_columns)),
        query_part=query_part,
        gallery_part=gallery_part,
        kinds=tuple(dict.fromkeys(kinds)),
        seed=seed,
    )
    check_question(named["shards"], question)
    features = open_named(**named)
    record = run_probe(features, question, method, command_words())
    for note in record["notes"]:
        click.echo(note, err=True)
    click.echo(probe_table(record))
    if confusion:
        click.echo(confusion_table(record))
    folder = result_folder(features)
    name = result_name("probe", method, question.name, *name_words(features.provenance))
    target = output or (folder and folder / name)
    if target is not None:
        write_result(target, record)
        click.echo(f"written to {target}")


@click.command(short_help="Find the videos nearest to any file.")
@click.argument("video", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--embeddings", required=True, type=_FILE, help="Features file of cmd-eval embed.")
@click.option("--count", type=click.IntRange(1), default=5, help="How many videos to find.")
@click.option("--output", type=_TARGET, default=Path("search.png"), help="Picture of them, .png or .jpg.")
@click.option("--checkpoint", type=_PATH, help="Where the features' checkpoint lies.  [default: as recorded]")
@click.option("--shards", type=_FOLDER, help="Where the features' shards lie.  [default: as recorded]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to compute.")
def search(
    video: Path,
    embeddings: Path,
    count: int,
    output: Path,
    checkpoint: Path | None,
    shards: Path | None,
    device: str,
) -> None:
    """Find the videos nearest to VIDEO, which may be any video file; write a picture of them.

    The file is extracted by cmd-extract as the shards were, and embedded by the same checkpoint.
    """
    from cmd_eval.features.store import read_features
    from cmd_eval.tasks.search import search as run_search
    from cmd_eval.tasks.search_picture import check_picture_path

    check_picture_path(output)
    run = run_search(
        video,
        read_features(embeddings),
        count=count,
        picture=output,
        shards=shards,
        checkpoint=checkpoint,
        device=device,
    )
    for note in run.notes:
        click.echo(note, err=True)
    for number, item in enumerate(run.found, start=1):
        click.echo(f"{number:3}  {item.text}")
    click.echo(f"written to {output}")


@click.command(short_help="Compare networks with both heads and either.")
@click.argument("shards", type=_FOLDER)
@click.option("--both", type=_PATH, help="Checkpoint, or training's folder, of a network with both heads.")
@click.option("--context", type=_PATH, help="The same with the context head only.")
@click.option("--motion", type=_PATH, help="The same with the motion head only.")
@click.option("--with-untrained", is_flag=True, help="Add a row for the first of them as it was before training.")
@click.option("--with-grids", is_flag=True, help="Add a row for the hand-made descriptor of the motion grids.")
@split_option
@click.option("--test", "query_part", default="test", help="Part that asks and is tested, by label.")
@click.option("--train", "gallery_part", default="train", help="Part that is found and trained on, by label.")
@click.option("--clips", type=click.IntRange(1), default=10, help="Clips a video, at equal spacing.")
@click.option("--workers", type=click.IntRange(0), default=1, help="Decoding processes; 0 decodes in this one.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to compute.")
@fresh_option
@seed_option
@output_option("eval/ in the first training's folder")
def decoupling(
    shards: Path,
    both: Path | None,
    context: Path | None,
    motion: Path | None,
    with_untrained: bool,
    with_grids: bool,
    output: Path | None,
    clips: int,
    workers: int,
    device: str,
    fresh: bool,
    split_columns: tuple[str, ...],
    **asked: Any,
) -> None:
    """Do the two tasks separate? Retrieval and linear probe, by motion label and by context, in one table.

    By label over splits that keep scenes apart; by context (the group) each video among all others, and the probe on
    folds of all videos. The features of each network are kept in its training's folder.
    """
    from cmd_eval.data.table import VideoTable
    from cmd_eval.experiments.decoupling import (
        HEADS,
        DecouplingQuestion,
        check_heads,
        decoupling_pairings,
        decoupling_table,
        measure_decoupling,
    )
    from cmd_eval.features.motion_descriptor import describe_videos
    from cmd_eval.features.source import name_words, run_folder
    from cmd_eval.features.store import MOTION_GRIDS
    from cmd_eval.results.schema import EVAL_FOLDER, result_name, write_result
    from cmd_extract.shard.reader import ShardSet

    given = {name: path for name, path in zip(HEADS, (both, context, motion), strict=True) if path is not None}
    if not given:
        raise click.UsageError("give at least one of --both, --context and --motion")
    question = DecouplingQuestion(split_columns=tuple(dict.fromkeys(split_columns)), **asked)
    common = {"shards": shards, "clips": clips, "workers": workers, "device": device, "fresh": fresh}
    # A wrong question is to fail now, not after hours of embedding.
    decoupling_pairings(VideoTable.of(ShardSet(shards).videos), question)
    for name, path in given.items():
        check_heads(name, path)
    networks = {name: open_named(source=path, **common) for name, path in given.items()}
    first = next(iter(given.values()))
    if with_untrained:
        networks["untrained"] = open_named(source=first, untrained=True, **common)
    if with_grids:
        networks[MOTION_GRIDS] = describe_videos(ShardSet(shards), command_words(), show_progress("describe"))
    record = measure_decoupling(networks, question, command_words())
    for note in record["notes"]:
        click.echo(note, err=True)
    click.echo(decoupling_table(record))
    words = name_words(networks[next(iter(given))].provenance)
    target = output or run_folder(first) / EVAL_FOLDER / result_name("decoupling", question.name, *words)
    write_result(target, record)
    click.echo(f"written to {target}")
