"""The commands ``embed`` and ``search``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cmd_eval.cli.options import (
    FILE,
    FILE_OR_FOLDER,
    FOLDER,
    OUTPUT_FILE,
    clips_option,
    device_option,
    fresh_option,
    readout_option,
    untrained_option,
    workers_option,
)
from cmd_eval.features.readout import DEFAULT_READOUT, ReadoutName
from cmd_extract.console.commands import command_line
from cmd_extract.console.progress import ProgressDisplay


@click.command(short_help="Compute the features of all videos.")
@click.argument("checkpoint", type=FILE_OR_FOLDER)
@click.argument("shards", nargs=-1, required=True, type=FOLDER)
@click.argument("out", metavar="OUT.h5", type=OUTPUT_FILE)
@clips_option
@readout_option
@untrained_option
@workers_option
@device_option
@fresh_option
def embed(
    checkpoint: Path, shards: tuple[Path, ...], out: Path, fresh: bool, readout: ReadoutName | None, **config: Any
) -> None:
    """Compute the features of all videos in SHARDS: one per clip, and their mean per video.

    CHECKPOINT is a checkpoint, or a run folder for its last one. After an interruption, the same command continues;
    unfinished work is kept in OUT.h5.partial.
    """
    from cmd_eval.features.embed import EmbeddingConfig, embed_to_file
    from cmd_extract.shard.folders import open_folders

    embedding = EmbeddingConfig(checkpoint=checkpoint, readout=readout or DEFAULT_READOUT, **config)
    if out.exists() and not fresh:
        click.echo(f"{out} exists; nothing is computed if it belongs to this checkpoint and these shards", err=True)
    with ProgressDisplay("embed") as display:
        features = embed_to_file(out, embedding, open_folders(shards), command_line(), display.update, fresh=fresh)
    videos, width = features.mean_VF.shape
    click.echo(f"{out}: features of {videos} videos, {embedding.clips} clips per video, {width} values per clip")


@click.command(short_help="Find the videos nearest to a video file.")
@click.argument("video", type=FILE)
@click.option("--embeddings", required=True, type=FILE, help="Features file of cmd-eval embed.")
@click.option("--count", type=click.IntRange(1), default=5, help="Number of videos to find.")
@click.option("--output", type=OUTPUT_FILE, default=Path("search.png"), help="Picture of the result, .png or .jpg.")
@click.option("--checkpoint", type=FILE_OR_FOLDER, help="Checkpoint of the features.  [default: recorded path]")
@click.option(
    "--shards", multiple=True, type=FOLDER, help="Shards of the features; repeatable.  [default: recorded paths]"
)
@readout_option
@device_option
def search(video: Path, embeddings: Path, output: Path, readout: ReadoutName | None, **options: Any) -> None:
    """Find the videos nearest to VIDEO, which may be any video file, and draw them.

    The file is extracted with the settings of the shards and embedded with the checkpoint of the features.
    """
    from cmd_eval.features.store import read_features, with_readout
    from cmd_eval.tasks.search import search as run_search
    from cmd_eval.tasks.search_picture import check_picture_path

    check_picture_path(output)
    run = run_search(video, with_readout(read_features(embeddings), readout), picture=output, **options)
    for note in run.notes:
        click.echo(note, err=True)
    for number, hit in enumerate(run.hits, start=1):
        click.echo(f"{number:3}  {hit.text}")
    click.echo(f"Picture written to {output}")
