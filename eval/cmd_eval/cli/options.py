"""What the commands of cmd-eval share: options, progress, the words of the command. Loads nothing heavy."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cmd_eval.features.store import Features
    from cmd_eval.tasks.run_retrieval import Question

EXIT_INTERRUPTED = 130
_PROGRESS_SECONDS = 10.0
_WORDS = "eval.command_words"
WITH_TRAINING = "eval/ in the training's folder; where that is gone, beside FEATURES.h5"
"""Where results of features go."""

Command = Callable[..., None]


class EvalGroup(click.Group):
    """Turns the errors that users can mend into one line and an exit code, and leaves bugs their traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the work, not of the alphabet."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keeps the words of the command line, for the record."""
        ctx.meta[_WORDS] = shlex.join(["cmd-eval", *args])
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            # How --help ends; they are RuntimeErrors.
            raise
        except KeyboardInterrupt:
            click.echo("interrupted; run the same command again, what is done of features is kept", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except (ValueError, OSError, RuntimeError) as error:
            if ctx.params.get("debug"):
                raise
            raise click.ClickException(str(error)) from error


def command_words() -> str:
    """The command line as it was given."""
    return str(click.get_current_context().meta[_WORDS])


def source_options(command: Command) -> Command:
    """Arguments and options that name features: a features file, or CHECKPOINT and SHARDS."""
    for decorate in (
        click.argument("source", metavar="FEATURES.h5|CHECKPOINT", type=click.Path(exists=True, path_type=Path)),
        click.argument("shards", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)),
    )[::-1]:
        command = decorate(command)
    command = fresh_option(command)
    text = "Clips a video, at equal spacing.  [default: 10, or those of FEATURES.h5]"
    return click.option("--clips", type=click.IntRange(1), help=text)(computing_options(command))


def model_options(command: Command) -> Command:
    """Options that say how a checkpoint embeds videos."""
    text = "Clips a video, at equal spacing."
    return click.option("--clips", type=click.IntRange(1), default=10, help=text)(
        fresh_option(computing_options(command))
    )


def fresh_option(command: Command) -> Command:
    """Whether features that are there are made again."""
    text = "Make the features anew; the old file stays until the new one is whole."
    return click.option("--fresh", is_flag=True, help=text)(command)


def computing_options(command: Command) -> Command:
    """Options that say which network embeds videos, and where."""
    devices = click.Choice(["auto", "cpu", "cuda"])
    for option in (
        click.option("--device", type=devices, default="auto", help="Where to compute."),
        click.option("--workers", type=click.IntRange(0), default=1, help="Decoding processes; 0 decodes in this one."),
        click.option("--untrained", is_flag=True, help="Take the network as it was before training."),
    ):
        command = option(command)
    return command


def question_options(command: Command) -> Command:
    """The options that say which videos look for which, and what is printed of it."""
    everyone = "Every video asks all others; splits are not looked at."
    for option in (
        click.option("--per-class", is_flag=True, help="Print R@1 and R@5 of each class, too."),
        seed_option,
        click.option("--leave-one-out", is_flag=True, help=everyone),
        kind_option,
        click.option("--gallery", "gallery_part", default="train", help="Part whose videos are found."),
        click.option("--query", "query_part", default="test", help="Part whose videos ask."),
        split_option,
    ):
        command = option(command)
    return command


def split_option(command: Command) -> Command:
    """Split columns of the manifest."""
    text = "Split column of the manifest; repeat it for the mean over several."
    return click.option("--split-column", "split_columns", multiple=True, default=["split1"], help=text)(command)


def kind_option(command: Command) -> Command:
    """Labels or groups, or both."""
    kinds = click.Choice(["label", "group"])
    text = "What is looked for: the label or the group; give it twice for both."
    return click.option("--label", "kinds", type=kinds, multiple=True, default=["label"], help=text)(command)


def seed_option(command: Command) -> Command:
    """The evaluation's seed."""
    text = "Decides every draw: of the intervals, of validation parts."
    return click.option("--seed", type=click.IntRange(0), default=0, help=text)(command)


def output_option(otherwise: str) -> Callable[[Command], Command]:
    """Where the result goes; ``otherwise`` tells where it goes without the option."""
    text = f"JSON file for the result.  [default: {otherwise}]"
    return click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help=text)


def open_named(**named: Any) -> Features:
    """The features that ``source_options`` name; embeds them first if need be."""
    from cmd_eval.features.source import FeatureSource, open_features

    return open_features(FeatureSource(**named), command_words(), show_progress("embed"))


def check_question(shards: Path | None, question: Question) -> None:
    """Refuses a question that the videos of shards cannot answer, before hours are spent on their features.

    Args:
        shards: their folder; None where there are features already.
        question: about splits, parts and labels.

    Raises:
        ValueError: one of them does not exist.
    """
    if shards is not None:
        from cmd_eval.data.table import VideoTable
        from cmd_eval.tasks.run_retrieval import pairings
        from cmd_extract.shard.reader import ShardSet

        pairings(VideoTable.of(ShardSet(shards).videos), question)


def show_progress(what: str) -> Callable[[int, int], None]:
    """A line every ten seconds, and one at the end; counts from the beginning whenever the number of videos falls.

    The speed is that since the first video that it is told of: neither what an earlier run has done nor what came
    before, such as a training, says anything of it.
    """
    first = done_before = 0
    start = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal first, done_before, start, last
        now = time.monotonic()
        if done <= done_before or not first:
            first, start, last = done, now, now
        done_before = done
        if now - last < _PROGRESS_SECONDS and done != total:
            return
        last = now
        rate = (done - first) / (now - start) if now > start else 0.0
        told = f", {rate:.1f} a second, about {(total - done) / rate:.0f} s left" if rate else ""
        print(f"{what} {done}/{total} videos{told}", file=sys.stderr, flush=True)

    return show
