"""The command line of evaluation: ``cmd-eval``. Heavy imports wait until a command needs them."""

from __future__ import annotations

import click

from eval.cli_evidence import evidence
from eval.cli_features import decoupling, embed, probe, search
from eval.cli_recognition import auxiliary, recognition
from eval.cli_report import report
from eval.cli_retrieval import baseline, compare, retrieval
from eval.command_line import EvalGroup


@click.group(cls=EvalGroup, context_settings={"show_default": True})
@click.version_option(package_name="context-motion-decoupling")
@click.option("--debug", is_flag=True, help="Show the traceback of errors.")
def main(debug: bool) -> None:
    """Evaluate trained video backbones.

    Exit codes: 0 all well; 2 wrong usage; 130 interrupted, the same command continues; 1 any other error, which one
    line explains.
    """


for _command in (
    embed,
    retrieval,
    baseline,
    probe,
    recognition,
    decoupling,
    search,
    report,
    compare,
    auxiliary,
    evidence,
):
    main.add_command(_command)
