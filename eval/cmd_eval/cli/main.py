"""The command line of evaluation: ``cmd-eval``. Heavy imports wait until a command needs them."""

from __future__ import annotations

import click

from cmd_eval.cli.experiments import evidence
from cmd_eval.cli.features import decoupling, embed, probe, search
from cmd_eval.cli.options import EvalGroup
from cmd_eval.cli.recognition import auxiliary, recognition
from cmd_eval.cli.report import report
from cmd_eval.cli.retrieval import baseline, compare, retrieval


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
