"""The command line of evaluation: ``cmd-eval``. Heavy imports wait until a command needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eval.cli_recognition import auxiliary, recognition
from eval.command_line import EvalGroup, show_progress

if TYPE_CHECKING:
    from eval.retrieval import RetrievalResult
    from eval.run_retrieval import Question, RetrievalRun

_LABEL_HELP = "What a hit must share with its query; give it twice for both."


@click.group(cls=EvalGroup, context_settings={"show_default": True})
@click.version_option(package_name="context-motion-decoupling")
@click.option("--debug", is_flag=True, help="Show the traceback of errors.")
def main(debug: bool) -> None:
    """Evaluate trained video backbones."""


main.add_command(recognition)
main.add_command(auxiliary)


def _question_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which videos look for which."""
    kinds = click.Choice(["label", "group"])
    for option in (
        click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file for the result."),
        click.option("--label", "kinds", type=kinds, multiple=True, default=["label"], help=_LABEL_HELP),
        click.option("--gallery", "gallery_part", default="train", help="Part whose videos are found."),
        click.option("--query", "query_part", default="test", help="Part whose videos ask."),
        click.option("--split-column", default="split1", help="Split column of the manifest."),
    ):
        command = option(command)
    return command


@main.command()
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("shards", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_question_options
@click.option("--clips", type=click.IntRange(1), default=10, help="Clips a video, at equal spacing.")
@click.option("--untrained", is_flag=True, help="Evaluate the network as it was before training.")
@click.option("--workers", type=click.IntRange(0), default=1, help="Decoding processes; 0 decodes in this one.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to compute.")
def retrieval(
    checkpoint: Path,
    shards: Path,
    split_column: str,
    query_part: str,
    gallery_part: str,
    kinds: tuple[str, ...],
    output: Path | None,
    clips: int,
    untrained: bool,
    workers: int,
    device: str,
) -> None:
    """Retrieve videos by nearest neighbours: R@1, 5, 10, 20 and 50, by cosine similarity.

    CHECKPOINT is a checkpoint, or a training's folder for its last one; SHARDS a folder of cmd-extract. The result is
    written beside the checkpoint unless --output says otherwise.
    """
    from eval.run_retrieval import ModelChoice, retrieve_by_model
    from train.checkpoint import find_checkpoint

    question = _question(shards, split_column, query_part, gallery_part, kinds)
    choice = ModelChoice(checkpoint=checkpoint, untrained=untrained, clips=clips, device=device, workers=workers)
    name = f"retrieval-{split_column}-{'-'.join(question.kinds)}{'-untrained' if untrained else ''}.json"
    target = output or find_checkpoint(checkpoint) / name
    _report(retrieve_by_model(question, choice, show_progress("embed")), target)


@main.command()
@click.argument("shards", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_question_options
def baseline(
    shards: Path,
    split_column: str,
    query_part: str,
    gallery_part: str,
    kinds: tuple[str, ...],
    output: Path | None,
) -> None:
    """Retrieve by a hand-made descriptor of the motion grids: no training, no pixels; the mark to beat.

    The result is printed, and written where --output says.
    """
    from eval.run_retrieval import retrieve_by_motion_grids

    question = _question(shards, split_column, query_part, gallery_part, kinds)
    _report(retrieve_by_motion_grids(question, show_progress("describe")), output)


def _question(shards: Path, split_column: str, query_part: str, gallery_part: str, kinds: Sequence[str]) -> Question:
    from eval.run_retrieval import Question

    return Question(
        shards=shards,
        split_column=split_column,
        query_part=query_part,
        gallery_part=gallery_part,
        kinds=tuple(dict.fromkeys(kinds)),
    )


def _report(run: RetrievalRun, target: Path | None) -> None:
    from eval.run_retrieval import write_json

    for note in run.notes:
        click.echo(note, err=True)
    click.echo(_table(run.results))
    if target is not None:
        write_json(target, run.record)
        click.echo(f"written to {target}")


def _table(results: Sequence[RetrievalResult]) -> str:
    ranks = list(results[0].recall)
    lines = ["".join(["by".ljust(16), *(f"R@{k}".rjust(8) for k in ranks)])]
    for result in results:
        lines.append("".join([result.label_kind.ljust(16), *(f"{result.recall[k]:8.1%}" for k in ranks)]))
        lines.append("".join(["  chance".ljust(16), *(f"{result.chance[k]:8.1%}" for k in ranks)]))
    return "\n".join([*lines, f"{results[0].queries} queries, {results[0].gallery} in the gallery"])


@main.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def compare(results: tuple[Path, ...]) -> None:
    """Show the JSON files of several retrieval runs in one table, beside chance."""
    from eval.comparison import comparison_table

    click.echo(comparison_table(results))
