"""The commands ``embed``, ``probe``, ``search`` and ``decoupling``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from eval.command_line import (
    command_words,
    kind_option,
    model_options,
    open_named,
    output_option,
    seed_option,
    show_progress,
    source_options,
    split_option,
)


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("shards", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", metavar="OUT.h5", type=click.Path(dir_okay=False, path_type=Path))
@model_options
def embed(checkpoint: Path, shards: Path, out: Path, clips: int, untrained: bool, workers: int, device: str) -> None:
    """Write the features of all videos of SHARDS: of each clip, and their mean.

    CHECKPOINT is a checkpoint, or a training's folder for its last one. Started again after an interruption it
    continues; what is done so far lies in OUT.h5.partial.
    """
    from eval.embed import ModelChoice, embed_to_file
    from extract.shard_reader import ShardSet

    choice = ModelChoice(checkpoint=checkpoint, untrained=untrained, clips=clips, device=device, workers=workers)
    if out.exists():
        click.echo(
            f"{out} is there already; nothing is computed if it is of this checkpoint and these shards", err=True
        )
    features = embed_to_file(out, choice, ShardSet(shards), command_words(), show_progress("embed"))
    videos, width = features.mean_VF.shape
    click.echo(f"{videos} videos, {clips} clips each, {width} features; in {out}")


@click.command()
@source_options
@click.option("--method", type=click.Choice(["linear", "knn"]), default="linear", help="The classifier.")
@split_option
@click.option("--test", "query_part", default="test", help="Part that is tested.")
@click.option("--train", "gallery_part", default="train", help="Part that is trained on.")
@kind_option
@seed_option
@click.option("--confusion", is_flag=True, help="Print accuracy and confusion of each class, too.")
@output_option
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
    from eval.feature_source import result_folder
    from eval.result_tables import confusion_table, probe_table
    from eval.results import write_result
    from eval.run_probe import run_probe
    from eval.run_retrieval import Question

    question = Question(
        split_columns=tuple(dict.fromkeys(split_columns)),
        query_part=query_part,
        gallery_part=gallery_part,
        kinds=tuple(dict.fromkeys(kinds)),
        seed=seed,
    )
    features = open_named(**named)
    record = run_probe(features, question, method, command_words())
    for note in record["notes"]:
        click.echo(note, err=True)
    click.echo(probe_table(record))
    if confusion:
        click.echo(confusion_table(record))
    folder = result_folder(features)
    ending = "-untrained" if features.provenance.untrained else ""
    target = output or (folder and folder / f"probe-{method}-{question.name}{ending}.json")
    if target is not None:
        write_result(target, record)
        click.echo(f"written to {target}")
