"""The command line of extraction: ``cmd-extract``. Heavy imports wait until a command needs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from extract.index import RunSummary
    from extract.manifest_sources import ManifestSource

EXIT_WITH_FAILURES = 3
EXIT_INTERRUPTED = 130

_FORMATS = ("auto", "csv", "folder", "ucf101", "hmdb51", "kinetics")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


class _Group(click.Group):
    """Turns the errors that users can mend into one line and an exit code, and leaves bugs their traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted; run the same command again to continue", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except (ValueError, OSError, RuntimeError) as error:
            # ManifestError, ShardError and FfmpegError are among these.
            if ctx.params.get("debug"):
                raise
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"show_default": True})
@click.version_option(package_name="context-motion-decoupling")
@click.option("--debug", is_flag=True, help="Show the traceback of errors.")
def main(debug: bool) -> None:
    """Extract keyframes, motion vectors and small frames from videos into HDF5 shards."""


@main.command()
@click.argument("manifest", type=_FILE)
@click.argument("out", type=_PATH)
@click.option("--root", type=_FOLDER, help="Folder that relative paths start from.  [default: the manifest's]")
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: all cores]")
@click.option("--size", default="340x256", metavar="WxH", help="Size of the canonical stream in pixels.")
@click.option("--codec", type=click.Choice(["mpeg4", "h264"]), default="mpeg4", help="Codec of the canonical stream.")
@click.option("--gop", type=int, default=12, help="Distance of I-frames in frames.")
@click.option("--quality", type=int, help="Quantiser of the canonical stream.  [default: 3 for mpeg4, 23 for h264]")
@click.option("--fps", help="Convert to this constant frame rate, e.g. 25 or 30000/1001.  [default: keep all frames]")
@click.option("--frame-short-side", type=int, default=128, help="Short side of the small frames in pixels.")
@click.option("--jpeg-quality", type=int, default=3, help="Quantiser of all JPEGs, 2 (best) to 31.")
@click.option("--cell", "cell_px", type=click.Choice(["8", "16"]), default="8", help="Motion grid cell in pixels.")
@click.option("--videos-per-shard", type=click.IntRange(1), help="[default: about 32 shards, at most 256 videos each]")
@click.option("--scratch", type=_PATH, help="Folder for temporary files.  [default: OUT]")
@click.option("--ffmpeg", "ffmpeg_path", help="FFmpeg binary.  [default: the system's, else imageio-ffmpeg's]")
def run(
    manifest: Path,
    out: Path,
    root: Path | None,
    workers: int | None,
    size: str,
    codec: str,
    gop: int,
    quality: int | None,
    fps: str | None,
    frame_short_side: int,
    jpeg_quality: int,
    cell_px: str,
    videos_per_shard: int | None,
    scratch: Path | None,
    ffmpeg_path: str | None,
) -> None:
    """Extract the videos of MANIFEST into shards in the folder OUT.

    Started again, it continues. Exit code 0: all well; 3: finished, but some videos failed (see OUT/failures.csv);
    2: wrong usage; 1: another error; 130: interrupted.
    """
    import joblib

    from extract.config import ExtractConfig
    from extract.ffmpeg_binary import find_ffmpeg
    from extract.index import RunJob
    from extract.manifest import read_manifest
    from extract.pipeline import run_extraction

    width, height = _parse_size(size)
    try:
        config = ExtractConfig(
            width=width,
            height=height,
            codec=codec,
            gop=gop,
            quality=quality,
            fps=fps,
            frame_short_side=frame_short_side,
            jpeg_quality=jpeg_quality,
            cell_px=int(cell_px),
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    root = root or manifest.parent
    # A file that is missing is found out, named and counted when its turn comes; one lost file ends no long run.
    records = read_manifest(manifest, root=root, check_paths=False)
    job = RunJob(root=root, out=out, scratch=scratch or out, config=config, binary=find_ffmpeg(ffmpeg_path))
    click.echo(f"{len(records)} videos; {job.binary.version} ({job.binary.path})", err=True)
    summary = run_extraction(records, job, workers=workers or joblib.cpu_count(), videos_per_shard=videos_per_shard)
    _print_summary(summary, out)
    if summary.failures:
        raise SystemExit(EXIT_WITH_FAILURES)


def _parse_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise click.BadParameter(f"{text!r} is not a size such as 340x256", param_hint="--size")
    return int(width), int(height)


def _print_summary(summary: RunSummary, out: Path) -> None:
    rate = summary.new_frames / summary.seconds if summary.seconds else 0.0
    click.echo(f"videos    {summary.videos} ({summary.new_videos} in this run)")
    click.echo(f"frames    {summary.frames} ({rate:.0f} a second in this run)")
    click.echo(f"failures  {summary.failures}" + (f", listed in {out / 'failures.csv'}" if summary.failures else ""))
    click.echo(f"shards    {summary.shards}, {summary.size_bytes / 1e6:.1f} MB, in {out}")


@main.command()
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
    from extract.manifest import write_manifest
    from extract.manifest_sources import detect_format

    form = detect_format(source) if form == "auto" else form
    found = _read_source(source, form, videos, root or manifest.absolute().parent, missing)
    write_manifest(found.records, manifest)
    for note in found.notes:
        click.echo(note, err=True)
    labels = {record.label for record in found.records} - {""}
    splits = ", ".join(found.records[0].splits) or "none"
    click.echo(f"{manifest}: {len(found.records)} videos ({form}), {len(labels)} classes, split columns: {splits}")


def _read_source(source: Path, form: str, videos: Path | None, root: Path, missing: str) -> ManifestSource:
    from extract import manifest_datasets, manifest_sources

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


@main.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--videos-per-combination", type=click.IntRange(2), default=4, help="Videos of each motion and context.")
@click.option("--frames", type=click.IntRange(2), default=96, help="Frames a video, at 30 a second.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Decides every video.")
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: all cores]")
@click.option("--ffmpeg", "ffmpeg_path", help="FFmpeg binary.  [default: the system's, else imageio-ffmpeg's]")
def synthesize(
    out: Path, videos_per_combination: int, frames: int, seed: int, workers: int | None, ffmpeg_path: str | None
) -> None:
    """Make a labelled set of small videos in OUT, with its manifest.

    What moves how (the label) and what it moves in front of (the group) are independent of each other.
    """
    import joblib

    from extract.ffmpeg_binary import find_ffmpeg
    from extract.progress import CountReport
    from extract.synthetic import SyntheticConfig, synthesize

    config = SyntheticConfig(videos_per_combination=videos_per_combination, frames=frames, seed=seed)
    binary = find_ffmpeg(ffmpeg_path)
    with CountReport("synthesize") as report:
        manifest = synthesize(
            config, out, ffmpeg_binary=binary.path, workers=workers or joblib.cpu_count(), progress=report.update
        )
    click.echo(f"{manifest}: a manifest of synthetic videos")
