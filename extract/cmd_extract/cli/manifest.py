"""The commands ``manifest``, ``inner-splits``, ``relabel`` and ``synthesize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmd_extract.cli import options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cmd_extract.manifest.sources import ManifestSource
    from cmd_extract.sources.limits import SourceLimits
    from cmd_extract.sources.location import RemoteFile

_FORMATS = ("auto", "csv", "list", "folder", "tar", "ucf101", "hmdb51", "kinetics", "ssv2", "diving48")


@click.command(short_help="Create a manifest of a dataset.")
@click.argument("source", type=options.PathOrUrl())
@click.argument("manifest", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--format", "form", type=click.Choice(_FORMATS), default="auto", help="Format of SOURCE.")
@click.option(
    "--videos",
    type=options.EXISTING_FOLDER,
    help="Folder of the videos, except for folder and tar.  [default for csv and list: SOURCE's folder]",
)
@click.option(
    "--root",
    type=options.EXISTING_FOLDER,
    help="Folder to which paths in the manifest are relative.  [default: MANIFEST's folder]",
)
@click.option(
    "--missing",
    type=click.Choice(["error", "skip"]),
    default="error",
    help="How to treat rows without a video file (kinetics only).",
)
@options.remote_requests
def manifest(
    source: Path | RemoteFile,
    manifest: Path,
    form: str,
    videos: Path | None,
    root: Path | None,
    missing: str,
    remote_timeout: float,
    remote_retries: int,
) -> None:
    """Create the manifest MANIFEST from SOURCE.

    SOURCE is a CSV file with a column "path", a list of lines "video.mp4 label", a folder of the form <class>/<file>,
    a tar file or a folder of tar files, or the official lists of UCF101, HMDB51, Kinetics, Something-Something v2 or
    Diving48; see data_manifests/README.md.

    SOURCE may also be the URL of a folder of videos or tar files in an object store (s3://, gs://), or of a tar file
    (also https://). Paths in the manifest then are URLs.
    """
    from cmd_extract.manifest.detect import detect_format
    from cmd_extract.manifest.records import write_manifest
    from cmd_extract.sources.limits import SourceLimits

    if isinstance(source, Path):
        form = detect_format(source) if form == "auto" else form
        found = _read_source(source, form, videos, root or manifest.absolute().parent, missing)
    else:
        _check_url_options(form, {"--videos": videos, "--root": root}, missing)
        limits = SourceLimits(timeout_seconds=remote_timeout, retries=remote_retries)
        form, found = _read_url(source.url, form, limits)
    write_manifest(found.records, manifest)
    for note in found.notes:
        click.echo(note, err=True)
    labels = {record.label for record in found.records} - {""}
    splits = ", ".join(found.records[0].splits) or "none"
    click.echo(f"{manifest}: {len(found.records)} videos ({form}), {len(labels)} classes, split columns: {splits}")


def _check_url_options(form: str, folders: Mapping[str, Path | None], missing: str) -> None:
    if form not in ("auto", "folder", "tar"):
        raise click.UsageError(f"--format: {form} requires a local SOURCE; download it first")
    for name, folder in folders.items():
        if folder is not None:
            raise click.UsageError(f"{name}: not used with a URL as SOURCE, whose videos are listed by their URLs")
    if missing != "error":
        raise click.UsageError("--missing: not used with a URL as SOURCE")


def _read_url(url: str, form: str, limits: SourceLimits) -> tuple[str, ManifestSource]:
    from cmd_extract.console.progress import ProgressDisplay
    from cmd_extract.manifest.remote import from_url
    from cmd_extract.system.signals import interruptible

    with interruptible(), ProgressDisplay("manifest", "tar files") as display:
        return from_url(url, form, limits=limits, progress=display.update)


def _read_source(source: Path, form: str, videos: Path | None, root: Path, missing: str) -> ManifestSource:
    from cmd_extract.manifest import datasets, json_datasets, kinetics, sources, tar

    if missing != "error" and form != "kinetics":
        raise click.UsageError(f"--missing: only the format kinetics allows missing videos, not {form}")
    if videos is not None and form in ("folder", "tar"):
        raise click.UsageError(f"--videos: not used with the format {form}, where SOURCE contains the videos")
    if form == "csv":
        return sources.from_csv(source, root=root, videos=videos)
    if form == "list":
        return sources.from_list(source, root=root, videos=videos)
    if form in ("folder", "tar"):
        return (sources.from_folder if form == "folder" else tar.from_tar)(source, root=root)
    if videos is None:
        raise click.UsageError(f"--videos: required for the format {form}; pass the folder of the videos")
    if form == "kinetics":
        return kinetics.from_kinetics(source, videos, root=root, missing=missing)
    if form in ("ucf101", "hmdb51"):
        read_splits = datasets.from_ucf101 if form == "ucf101" else datasets.from_hmdb51
        return read_splits(videos, source, root=root)
    read_json = json_datasets.from_ssv2 if form == "ssv2" else json_datasets.from_diving48
    return read_json(source, videos, root=root)


@click.command("inner-splits", short_help="Add folds of the training part to a manifest.")
@click.argument("manifest", type=options.EXISTING_FILE)
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--split-column", "split_columns", multiple=True, required=True, help="Split to divide; repeatable.")
@click.option("--folds", type=click.IntRange(2), default=3, help="Number of folds.")
def inner_splits(manifest: Path, out: Path, split_columns: tuple[str, ...], folds: int) -> None:
    """Write MANIFEST to OUT with inner splits of its training parts, for choosing settings.

    Adds the columns COLUMN-inner1, COLUMN-inner2 and so on. In each, the groups of one fold of COLUMN's training part
    are the test videos and the other folds the training videos; the test videos of COLUMN are in neither. Use them
    with `cmd-extract relabel` and, for example, `cmd-eval evidence --split-column split1-inner1`.
    """
    from cmd_extract.manifest.inner_splits import add_inner_splits
    from cmd_extract.manifest.records import read_manifest, write_manifest

    records = read_manifest(manifest, check_paths=False)
    for column in dict.fromkeys(split_columns):
        records = add_inner_splits(records, column, folds)
    write_manifest(records, out)
    click.echo(f"{out}: {len(records)} videos, split columns: {', '.join(records[0].splits)}")


@click.command(short_help="Replace the labels, groups and splits of an extraction.")
@options.shards_argument
@click.argument("manifest", type=options.EXISTING_FILE)
def relabel(out: Path, manifest: Path) -> None:
    """Replace the labels, groups and splits of the extraction OUT by those of MANIFEST, without extracting again.

    MANIFEST must have the rows, ids and paths that were extracted, in the same order. Split columns may be edited,
    added and removed. Features computed from OUT before must be computed again.
    """
    from cmd_extract.run.relabel import relabel

    found = relabel(out, manifest)
    click.echo(f"{out}: {found.text}")
    if found.changed or found.added or found.removed:
        click.echo("Compute features again (`cmd-eval embed`); runs on the old labels and splits cannot be continued.")


@click.command(short_help="Generate a labeled dataset of small videos.")
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--videos-per-combination", type=click.IntRange(2), default=6, help="Videos per combination of motion and context."
)
@click.option("--frames", type=click.IntRange(2), default=96, help="Frames per video, at 30 fps.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Random seed.")
@options.workers
@options.ffmpeg
def synthesize(
    out: Path, videos_per_combination: int, frames: int, seed: int, workers: int | None, ffmpeg_path: str | None
) -> None:
    """Generate a labeled dataset of small videos in OUT, with its manifest.

    The label is the motion of an object, the group is its background. The two are independent.
    """
    from cmd_extract.console.progress import ProgressDisplay
    from cmd_extract.decode.ffmpeg import find_ffmpeg
    from cmd_extract.run.workers import default_workers
    from cmd_extract.synthetic.dataset import SyntheticConfig, synthesize

    config = SyntheticConfig(videos_per_combination=videos_per_combination, frames=frames, seed=seed)
    binary = find_ffmpeg(ffmpeg_path)
    with ProgressDisplay("synthesize") as display:
        manifest = synthesize(
            config, out, ffmpeg_binary=binary.path, workers=workers or default_workers(), progress=display.update
        )
    click.echo(f"{manifest}: manifest of the synthetic videos")
