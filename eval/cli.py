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
    """Evaluate trained video backbones."""


main.add_command(embed)
main.add_command(probe)
main.add_command(search)
main.add_command(decoupling)
main.add_command(retrieval)
main.add_command(baseline)
main.add_command(compare)
main.add_command(recognition)
main.add_command(auxiliary)
main.add_command(evidence)
main.add_command(report)
