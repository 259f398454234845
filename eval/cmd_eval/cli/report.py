"""The command ``report``."""

from __future__ import annotations

from pathlib import Path

import click

from cmd_eval.cli.options import FOLDER, OUTPUT_FILE


@click.command(short_help="Write an HTML page about a run.")
@click.argument("run_dir", type=FOLDER)
@click.option("--output", type=OUTPUT_FILE, help="Page to write.  [default: RUN_DIR/report.html]")
@click.option(
    "--shards",
    multiple=True,
    type=FOLDER,
    help="Shards to draw pictures from; repeatable.  [default: paths recorded in the results]",
)
def report(run_dir: Path, output: Path | None, shards: tuple[Path, ...]) -> None:
    """Write an HTML page about a run: settings, results, training curves and pictures.

    RUN_DIR is a run folder of cmd-train, or the output folder of cmd-eval auxiliary or evidence; results are read from
    RUN_DIR/eval. The page is a single file that needs no network access.
    """
    from cmd_eval.report.build import write_report

    written = write_report(run_dir, output or run_dir / "report.html", shards)
    for line in written.left_out:
        # File names need not be UTF-8.
        click.echo(f"not in the report: {line}".encode("utf-8", "backslashreplace"), err=True)
    click.echo(f"Report written to {written.path} ({written.bytes / 1e6:.1f} MB)")
