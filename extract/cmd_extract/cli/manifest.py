"""The commands ``manifest`` and ``synthesize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cmd_extract.manifest.sources import ManifestSource

_FORMATS = ("auto", "csv", "folder", "ucf101", "hmdb51", "kinetics")
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(short_help="Make a manifest of a data set.")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("manifest", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--format", "form", type=click.Choice(_FORMATS), default="auto", help="What SOURCE is.")
@click.option(
    "--videos", type=_FOLDER, help="Folder of the videos (all formats but folder).  [default for csv: SOURCE's]"
)
@click.option("--root", type=_FOLDER, help="Write paths below this folder relative to it.  [default: MANIFEST's]")
@click.option(
    "--missing", type=click.Choice(["error", "skip"]), default="error", help="Rows without a file (kinetics)."
)
def manifest(source: Path, manifest: Path, form: str, videos: Path | None, root: Path | None, missing: str) -> None:
    """Turn SOURCE into the manifest MANIFEST.

    SOURCE is a CSV with a column path, a folder <class>/<file>, the folder of the official UCF101 or HMDB51 split
    files, or a Kinetics CSV; see data_manifests/README.md.
    """
    from cmd_extract.manifest.records import write_manifest
    from cmd_extract.manifest.sources import detect_format

    form = detect_format(source) if form == "auto" else form
    found = _read_source(source, form, videos, root or manifest.absolute().parent, missing)
    write_manifest(found.records, manifest)
    for note in found.notes:
        click.echo(note, err=True)
    labels = {record.label for record in found.records} - {""}
    splits = ", ".join(found.records[0].splits) or "none"
    click.echo(f"{manifest}: {len(found.records)} videos ({form}), {len(labels)} classes, split columns: {splits}")


def _read_source(source: Path, form: str, videos: Path | None, root: Path, missing: str) -> ManifestSource:
    from cmd_extract.manifest import datasets as manifest_datasets
    from cmd_extract.manifest import sources as manifest_sources

    if missing != "error" and form != "kinetics":
        raise click.UsageError(f"--missing: the format {form} needs every video; only kinetics may lack some")
    if videos is not None and form == "folder":
        raise click.UsageError("--videos: not with the format folder, whose SOURCE is the folder of the videos")
    if form == "csv":
        return manifest_sources.from_csv(source, root=root, videos=videos)
    if form == "folder":
        return manifest_sources.from_folder(source, root=root)
    if videos is None:
        raise click.UsageError(f"--videos: the format {form} needs the folder of the videos")
    if form == "ucf101":
        return manifest_datasets.from_ucf101(videos, source, root=root)
    if form == "hmdb51":
        return manifest_datasets.from_hmdb51(videos, source, root=root)
    return manifest_datasets.from_kinetics(source, videos, root=root, missing=missing)


@click.command(short_help="Make a labelled set of small videos.")
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--videos-per-combination", type=click.IntRange(2), default=4, help="Videos of each motion and context.")
@click.option("--frames", type=click.IntRange(2), default=96, help="Frames a video, at 30 a second.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Decides every video.")
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: all cores it may use]")
@click.option(
    "--ffmpeg", "ffmpeg_path", metavar="FILE", help="FFmpeg binary.  [default: the system's, else imageio-ffmpeg's]"
)
def synthesize(
    out: Path, videos_per_combination: int, frames: int, seed: int, workers: int | None, ffmpeg_path: str | None
) -> None:
    """Make a labelled set of small videos in OUT, with its manifest.

    What moves how (the label) and what it moves in front of (the group) are independent of each other.
    """
    from cmd_extract.decode.ffmpeg import find_ffmpeg
    from cmd_extract.run.progress import CountReport
    from cmd_extract.run.workers import default_workers
    from cmd_extract.synthetic.dataset import SyntheticConfig, synthesize

    config = SyntheticConfig(videos_per_combination=videos_per_combination, frames=frames, seed=seed)
    binary = find_ffmpeg(ffmpeg_path)
    with CountReport("synthesize") as report:
        manifest = synthesize(
            config, out, ffmpeg_binary=binary.path, workers=workers or default_workers(), progress=report.update
        )
    click.echo(f"{manifest}: a manifest of synthetic videos")
