"""The commands ``embed``, ``probe``, ``search`` and ``decoupling``."""

from __future__ import annotations

from pathlib import Path

import click

from eval.command_line import command_words, model_options, show_progress


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
