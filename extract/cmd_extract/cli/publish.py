"""The command ``publish``, and the option of the same name of ``run`` and ``merge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmd_extract.cli import options

if TYPE_CHECKING:
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
    size = f"{done.copied_bytes / 1e6:.1f} MB"
    click.echo(f"published: {done.copied} files copied and verified, {size}; {done.existing} existing, in {url}")
