"""The commands ``embed``, ``import-features``, ``export-features`` and ``search``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from cmd_eval.cli.options import (
    FILE,
    FILE_OR_FOLDER,
    FOLDER,
    OUTPUT_FILE,
    batch_size_option,
    clips_option,
    device_option,
    fresh_option,
    precision_option,
    readout_option,
    require_single_process,
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
@precision_option
@batch_size_option
@workers_option
@device_option
@fresh_option
def embed(
    checkpoint: Path, shards: tuple[Path, ...], out: Path, fresh: bool, readout: ReadoutName | None, **config: Any
) -> None:
    """Compute the features of all videos in SHARDS: one per clip, and their mean per video.

    CHECKPOINT is a checkpoint, or a run folder for its last one. After an interruption, the same command continues;
    unfinished work is kept in OUT.h5.partial. Started by torchrun or srun, each process embeds a share of the videos.
    """
    from cmd_eval.features.embed import EmbeddingConfig, embed_to_file
    from cmd_eval.features.source import require_writable
    from cmd_extract.shard.folders import open_folders
    from cmd_train.distributed.process_group import read_launch_info

    embedding = EmbeddingConfig(checkpoint=checkpoint, readout=readout or DEFAULT_READOUT, **config)
    is_main = read_launch_info(os.environ).rank == 0
    if fresh or not out.exists():
        require_writable(out.absolute().parent, "choose another file")
    elif is_main:
        click.echo(f"{out} exists; nothing is computed if it belongs to this checkpoint and these shards", err=True)
    with ProgressDisplay("embed") as display:
        features = embed_to_file(out, embedding, open_folders(shards), command_line(), display.update, fresh=fresh)
    videos, width = features.mean_VF.shape
    if is_main:
        click.echo(f"{out}: features of {videos} videos, {embedding.clips} clips per video, {width} values per clip")
        click.echo(f"Next: cmd-eval search VIDEO --embeddings {out}", err=True)


@click.command(short_help="Import the features of any other model.")
@click.argument("array", metavar="FEATURES.npy", type=FILE)
@click.argument("table", metavar="VIDEOS.csv", type=FILE)
@click.argument("out", metavar="OUT.h5", type=OUTPUT_FILE)
@click.option("--name", help="Name of the features in tables.  [default: name of FEATURES.npy without suffix]")
@click.option(
    "--shards",
    multiple=True,
    type=FOLDER,
    help="Shards of these videos, with their labels, groups, splits; repeatable.",
)
def import_features(array: Path, table: Path, out: Path, name: str | None, shards: tuple[Path, ...]) -> None:
    """Write the features of any other model to a features file, for retrieval, probe and search.

    FEATURES.npy has one row per video: (videos, features), or (videos, clips, features). VIDEOS.csv lists the videos in
    the same order, with a column id and optionally label, group, split columns, fingerprint (SHA-256 of the file) and
    frame_count; a manifest can be used.
    """
    from cmd_eval.features.exchange import import_features as run_import
    from cmd_extract.shard.folders import open_folders

    shard_set = open_folders(shards) if shards else None
    imported = run_import(array, table, out, name=name, shards=shard_set, command=command_line())
    for note in imported.notes:
        click.echo(note, err=True)
    videos, width = imported.features.mean_VF.shape
    clips = imported.features.provenance.clips
    click.echo(
        f"{out}: features of {videos} videos, {f'{clips} clips per video, ' if clips else ''}{width} values each"
    )


@click.command(short_help="Write features for other programs.")
@click.argument("features", metavar="FEATURES.h5", type=FILE)
@click.argument("out", metavar="OUT.npy|OUT.parquet", type=OUTPUT_FILE)
@readout_option
@click.option("--clips", is_flag=True, help="Write the features of all clips, (videos, clips, features); .npy only.")
def export_features(features: Path, out: Path, readout: ReadoutName | None, clips: bool) -> None:
    """Write the features of all videos to OUT.npy and the videos to OUT.csv, or both to one Parquet file.

    The rows of both files are in the same order; import-features reads them. Parquet needs the package pyarrow.
    """
    from cmd_eval.features.exchange import export_features as run_export
    from cmd_eval.features.store import read_features, with_readout

    paths = run_export(with_readout(read_features(features), readout), out, clips=clips)
    click.echo(f"Features written to {' and '.join(map(str, paths))}")


@click.command(short_help="Find the videos nearest to a video.")
@click.argument("query", metavar="VIDEO|ID")
@click.option("--embeddings", required=True, type=FILE, help="Features file of cmd-eval embed or import-features.")
@click.option("--count", type=click.IntRange(1), default=5, help="Number of videos to find.")
@click.option("--output", type=OUTPUT_FILE, default=Path("search.png"), help="Picture of the result, .png or .jpg.")
@click.option("--checkpoint", type=FILE_OR_FOLDER, help="Checkpoint of the features.  [default: recorded path]")
@click.option(
    "--shards", multiple=True, type=FOLDER, help="Shards of the features; repeatable.  [default: recorded paths]"
)
@readout_option
@device_option
def search(query: str, embeddings: Path, output: Path, readout: ReadoutName | None, **options: Any) -> None:
    """Find the videos nearest to any video file VIDEO, or to the video ID of the features file, and draw them.

    A file is extracted with the settings of the shards and embedded with the checkpoint of the features. A video of the
    features file needs neither, and is compared with all others.
    """
    from cmd_eval.features.store import read_features, with_readout
    from cmd_eval.tasks.search import search as run_search
    from cmd_eval.tasks.search_picture import check_picture_path

    require_single_process()
    check_picture_path(output)
    run = run_search(query, with_readout(read_features(embeddings), readout), picture=output, **options)
    for note in run.notes:
        click.echo(note, err=True)
    for number, hit in enumerate(run.hits, start=1):
        click.echo(f"{number:3}  {hit.text}")
    if run.picture is not None:
        click.echo(f"Picture written to {run.picture}")
