"""``cmd-eval evidence``. Heavy imports wait until the command needs them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cmd_eval.cli.options import EXIT_INTERRUPTED, command_words, seed_option, show_progress
from cmd_eval.experiments.evidence_sizes import SIZES, EvidenceSize
from cmd_train.recipes import complete_recipe

_SIZE = "[default: the size's]"
_PAIRS = "SECTION.FIELD=VALUE"


@click.command(short_help="Try the paper's claims on your own videos.")
@click.argument("shards", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--size", type=click.Choice(list(SIZES)), default="small", help="small: two cores; full: a GPU.")
@click.option("--split-column", "columns", multiple=True, help="Split; repeatable.  [default: all of the shards]")
@click.option("--steps", type=click.IntRange(1), help=f"Steps of each pre-training.  {_SIZE}")
@click.option("--seeds", type=click.IntRange(1), help=f"Pre-trainings with both heads on each split.  {_SIZE}")
@click.option("--single-seeds", type=click.IntRange(1), help=f"Pre-trainings with each single head.  {_SIZE}")
@click.option("--auxiliary-steps", type=click.IntRange(1), help=f"Steps of each supervised training.  {_SIZE}")
@click.option(
    "--auxiliary-seeds", type=click.IntRange(0), help=f"Pairs of supervised trainings on each split; 0: none.  {_SIZE}"
)
@click.option(
    "--recipe",
    shell_complete=complete_recipe(finetune=False),
    help=f"Recipe of the pre-trainings, without the size's changes.  {_SIZE}",
)
@click.option(
    "--auxiliary-recipe",
    shell_complete=complete_recipe(finetune=True),
    help=f"Recipe of the supervised trainings, likewise.  {_SIZE}",
)
@click.option("--clips", type=click.IntRange(1), help=f"Clips a video where networks are tested.  {_SIZE}")
@click.option("--set", "overrides", multiple=True, metavar=_PAIRS, help="Change any field of all pre-trainings.")
@click.option(
    "--auxiliary-set",
    "auxiliary_overrides",
    multiple=True,
    metavar=_PAIRS,
    help="Change any field of all supervised trainings.",
)
@click.option(
    "--bench",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of the benchmarks, for the speed of extraction.  [default: that of an earlier start, else none]",
)
@click.option(
    "--at-once",
    type=click.IntRange(1),
    default=1,
    help="Pre-trainings at the same time, each with its share of the cores.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to compute.")
@seed_option
def evidence(
    shards: Path,
    out: Path,
    size: str,
    columns: tuple[str, ...],
    overrides: tuple[str, ...],
    auxiliary_overrides: tuple[str, ...],
    bench: Path | None,
    at_once: int,
    device: str,
    seed: int,
    **changes: Any,
) -> None:
    """Try the paper's claims on your own labelled videos, in one table.

    Pre-trains on the train part of each split with both heads and with either one; retrieves by label (over splits) and
    by group (each video among all others); sets untrained networks, the motion grids and colours beside them; trains
    with labels, with and without motion prediction. Runs lie in OUT; the table is written to OUT/eval/evidence.json.
    Started again, it keeps finished runs and continues an interrupted one.
    """
    from cmd_eval.experiments.bench_file import read_extraction_speed
    from cmd_eval.experiments.plan import make_plan
    from cmd_eval.experiments.run import Surroundings, run_evidence
    from cmd_eval.results.evidence_table import evidence_table
    from cmd_extract.shard.reader import ShardSet

    speed = read_extraction_speed(bench) if bench else None
    plan = make_plan(
        ShardSet(shards),
        out,
        size,
        _changed(SIZES[size], **changes),
        split_columns=columns,
        overrides=overrides,
        auxiliary_overrides=auxiliary_overrides,
        device=device,
    )
    around = Surroundings(command=command_words(), say=_say, progress=show_progress, at_once=at_once)
    try:
        run = run_evidence(plan, around, speed=speed, seed=seed)
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to continue")
        raise SystemExit(EXIT_INTERRUPTED) from None
    for note in run.record["notes"]:
        _say(note)
    click.echo(evidence_table(run.record))
    click.echo(f"written to {run.target}; `cmd-eval report {out}` makes a page of it")


def _changed(size: EvidenceSize, **changes: Any) -> EvidenceSize:
    """A size with some numbers changed. Fewer headline seeds leave the other rows no more than these."""
    given = {name: value for name, value in changes.items() if value is not None}
    if "recipe" in given:
        given["changes"] = ()
    if "auxiliary_recipe" in given:
        given["auxiliary_changes"] = ()
    if "seeds" in given:
        given.setdefault("single_seeds", min(size.single_seeds, given["seeds"]))
        given.setdefault("auxiliary_seeds", min(size.auxiliary_seeds, given["seeds"]))
    return replace(size, **given)


def _say(text: str) -> None:
    click.echo(text, err=True)
