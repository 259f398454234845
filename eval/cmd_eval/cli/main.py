"""The command line ``cmd-eval``; slow imports are deferred until a command runs."""

from __future__ import annotations

import click

from cmd_eval.cli.experiments import auxiliary, decoupling, evidence
from cmd_eval.cli.features import embed, export_features, import_features, search
from cmd_eval.cli.recognition import probe, recognition
from cmd_eval.cli.report import report
from cmd_eval.cli.retrieval import baseline, compare, retrieval
from cmd_extract.console.commands import CommandGroup


@click.group(name="cmd-eval", cls=CommandGroup, context_settings={"show_default": True})
@click.version_option(package_name="context-motion-decoupling")
@click.option("--debug", is_flag=True, help="Show the traceback of errors.")
def main(debug: bool) -> None:
    """Evaluate trained video backbones.

    Exit codes: 0 success; 1 error, explained in one line; 2 wrong usage; 130 interrupted, run the same command again to
    continue.
    """


for _command in (
    embed,
    import_features,
    export_features,
    search,
    retrieval,
    baseline,
    compare,
    probe,
    recognition,
    decoupling,
    auxiliary,
    evidence,
    report,
):
    main.add_command(_command)
