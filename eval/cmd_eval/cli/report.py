"""The command ``cmd-eval report``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Write one HTML page on a training.")
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page to write.  [default: RUN_DIR/report.html]",
)
@click.option(
    "--shards",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where pictures come from.  [default: the folder that the results name]",
)
def report(run_dir: Path, output: Path | None, shards: Path | None) -> None:
    """Write one HTML page on a training: what was run, its results, curves and pictures.

    RUN_DIR is the folder of `cmd-train`; results are read from RUN_DIR/eval. The page needs nothing else: it can be
    mailed, printed, and opened without a network.
    """
    from cmd_eval.report.build import write_report

    written = write_report(run_dir, output or run_dir / "report.html", shards)
    for line in written.left_out:
        # Names of files need not be UTF-8.
        click.echo(f"not in the report: {line}".encode("utf-8", "backslashreplace"), err=True)
    click.echo(f"written to {written.path} ({written.bytes / 1e6:.1f} MB)")
