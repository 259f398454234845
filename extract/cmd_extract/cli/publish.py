"""The commands ``publish`` and ``fetch``, and the option ``--publish`` of ``run`` and ``merge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmd_extract.cli import options

if TYPE_CHECKING:
    from cmd_extract.run.publish import Copied
    from cmd_extract.sources.limits import SourceLimits


@click.command(short_help="Copy an extraction to object storage.")
@options.shards_argument
@options.publish_url
@options.remote_requests
def publish(out: Path, url: str, remote_timeout: float, remote_retries: int) -> None:
    """Copy the finished extraction OUT to URL (s3://bucket/folder or gs://bucket/folder) and verify the copies.

    Each copy is read back and compared by its checksum; index.json is copied last. Run the same command again to
    continue after an interruption: verified copies are kept.
    """
    from cmd_extract.sources.limits import SourceLimits

    publish_folder(out, url, SourceLimits(timeout_seconds=remote_timeout, retries=remote_retries))


def publish_folder(out: Path, url: str, limits: SourceLimits | None = None) -> None:
    """Publish with a progress display and print a summary."""
    from cmd_extract.console.progress import ProgressDisplay
    from cmd_extract.run.publish import publish as copy_verified

    with ProgressDisplay("publish", "files") as display:
        done = copy_verified(out, url, limits, display.update)
    click.echo(f"published: {_counts(done)}, in {url}")


@click.command(short_help="Copy an extraction from object storage.")
@options.publish_url
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@options.remote_requests
def fetch(url: str, out: Path, remote_timeout: float, remote_retries: int) -> None:
    """Copy the published extraction at URL to the folder OUT and verify its shards.

    Shards are compared with their checksums; index.json is written last. Run the same command again to continue after
    an interruption: complete shards are kept.
    """
    from cmd_extract.console.progress import ProgressDisplay
    from cmd_extract.run.publish import fetch as copy_verified
    from cmd_extract.sources.limits import SourceLimits

    limits = SourceLimits(timeout_seconds=remote_timeout, retries=remote_retries)
    with ProgressDisplay("fetch", "files") as display:
        done = copy_verified(url, out, limits, display.update)
    click.echo(f"fetched: {_counts(done)}, in {out}")


def _counts(done: Copied) -> str:
    size = f"{done.copied_bytes / 1e6:.1f} MB"
    return f"{done.copied} files copied and verified, {size}; {done.existing} existing"
