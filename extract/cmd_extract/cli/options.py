"""Options shared by several commands, and exit codes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmd_extract.console.commands import EXIT_ERROR
from cmd_extract.system.liveness import STALE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cmd_extract.run.job import Limits
    from cmd_extract.shard.index import ShardIndex

EXIT_SOME_FAILED = 3
"""Finished, but some videos failed. ``FailureLimitError`` has its own code."""
EXIT_DAMAGED = EXIT_ERROR
"""Verification found problems."""

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


class Seconds(click.FloatRange):
    """A positive number of seconds, perhaps infinite; NaN, which no comparison excludes, is refused."""

    def __init__(self) -> None:
        super().__init__(0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the text of an option."""
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


class PathOrUrl(click.Path):
    """An existing file or folder, or a URL."""

    def __init__(self, *, file_okay: bool = True) -> None:
        super().__init__(exists=True, file_okay=file_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the text of an option."""
        from cmd_extract.sources.location import is_url, parse_root

        return parse_root(value) if isinstance(value, str) and is_url(value) else super().convert(value, param, ctx)


class RootFolder(PathOrUrl):
    """An existing folder, or a URL prefix."""

    def __init__(self) -> None:
        super().__init__(file_okay=False)


shards_argument = click.argument("out", type=EXISTING_FOLDER)
workers = click.option(
    "--workers", type=click.IntRange(1), help="Number of worker processes.  [default: all available cores]"
)
ffmpeg = click.option(
    "--ffmpeg",
    "ffmpeg_path",
    metavar="FILE",
    help="FFmpeg binary, version 5.1 or newer.  [default: the system's, else imageio-ffmpeg's]",
)
accept_ffmpeg = click.option(
    "--accept-ffmpeg",
    metavar="VERSION",
    help="Continue with this FFmpeg although OUT was started with another release of the same major version. Shards "
    "record their own.",
)
scratch = click.option("--scratch", type=click.Path(path_type=Path), help="Folder for temporary files.  [default: OUT]")
timeout = click.option(
    "--timeout", type=Seconds(), default=3600.0, help="Time limit per video in seconds; inf for no limit."
)
max_memory = click.option("--max-memory-mb", type=click.IntRange(64), default=4096, help="Memory limit per video, MiB.")
_max_source = click.option(
    "--max-source-mb",
    type=click.IntRange(1),
    default=8192,
    help="Size limit per video that is copied to --scratch (remote files and members of tar files), MiB.",
)
_REMOTE_REQUESTS = (
    click.option(
        "--remote-timeout",
        type=click.FloatRange(0, 3600, min_open=True),
        default=60.0,
        help="Time limit per request for at most 8 MiB of a remote file, in seconds.",
    ),
    click.option(
        "--remote-retries",
        type=click.IntRange(0, 100),
        default=4,
        help="Number of retries of a failed request for a remote file.",
    ),
)


def remote_requests(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that limit requests for remote files."""
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(_REMOTE_REQUESTS), command)


def source_limits(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that limit reading of remote files and tar members."""
    return _max_source(remote_requests(command))


def limits_of(given: Mapping[str, Any]) -> Limits:
    """Return the limits per video from the options, by parameter name."""
    from cmd_extract.run.job import Limits
    from cmd_extract.sources.limits import SourceLimits

    sources = SourceLimits(
        max_mb=given["max_source_mb"], timeout_seconds=given["remote_timeout"], retries=given["remote_retries"]
    )
    return Limits(timeout_seconds=given["timeout"], max_memory_mb=given["max_memory_mb"], sources=sources)


def _writable_url(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Reject a destination before the extraction rather than after it."""
    if value is not None:
        from cmd_extract.run.publish import check_url

        try:
            check_url(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return value


publish_url = click.argument("url", callback=_writable_url)
publish = click.option(
    "--publish",
    metavar="URL",
    callback=_writable_url,
    help="Copy the extraction to this folder in an object store (s3://, gs://); `run` copies each shard once it is "
    "finished. See `cmd-extract publish`.",
)
stale_after = click.option(
    "--stale-after",
    type=Seconds(),
    default=STALE_SECONDS,
    help="Seconds without a heartbeat after which a task counts as dead.",
)
moved_manifest = click.option(
    "--manifest", type=EXISTING_FILE, help="Current path of the manifest.  [default: the path used by the run]"
)
moved_root = click.option(
    "--root", type=RootFolder(), help="Current folder, or URL prefix, of the videos.  [default: that of the run]"
)


def print_relabeling(before: Sequence[ShardIndex], out: Path, manifest: Path) -> None:
    """Print a note if labels, groups or splits of an earlier manifest have been replaced."""
    from cmd_extract.schema import is_relabeled
    from cmd_extract.shard.index import ShardIndex

    after = ShardIndex(out)
    removed = sorted({name for index in before for name in index.split_columns} - {*after.split_columns})
    if removed or any(is_relabeled(index.data_hash, after.data_hash) for index in before):
        removal = f"; split columns removed: {', '.join(removed)}" if removed else ""
        click.echo(f"note: the labels, groups and splits in {out} are now those of {manifest}{removal}", err=True)
