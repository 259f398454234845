"""``cmd-eval recognition`` and ``cmd-eval auxiliary``. Heavy imports wait until a command needs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmd_eval.cli.options import EXIT_INTERRUPTED, command_words, show_progress
from cmd_train.recipes import complete_recipe

if TYPE_CHECKING:
    from cmd_eval.tasks.recognition import RecognitionRun

_DEVICES = click.Choice(["auto", "cpu", "cuda"])


@click.command(short_help="Top-1 and top-5 of fine-tuned networks.")
@click.argument("checkpoints", metavar="CHECKPOINT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("shards", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--split-column", help="Split column of the manifest.  [default: what each checkpoint was trained on]")
@click.option("--test", "--part", "part", default="test", help="Part that is tested.")
@click.option("--clips", type=click.IntRange(1), default=10, help="Clips a video, at equal spacing.")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file for all.  [default: one each]"
)
@click.option("--workers", type=click.IntRange(0), default=1, help="Decoding processes; 0 decodes in this one.")
@click.option("--device", type=_DEVICES, default="auto", help="Where to compute.")
def recognition(
    checkpoints: tuple[Path, ...],
    shards: Path,
    split_column: str | None,
    part: str,
    clips: int,
    output: Path | None,
    workers: int,
    device: str,
) -> None:
    """Test what cmd-train finetune has trained: top-1 and top-5 with the softmax averaged over clips.

    CHECKPOINT is a checkpoint, or a training's folder for its last one; SHARDS a folder of cmd-extract. Of several
    checkpoints, say one for each split, the mean and the spread are printed, too. Without --output each result is
    written to RUN_DIR/eval/recognition-SPLIT.json; part, clips and step are in the name if they are not the usual.
    """
    from cmd_eval.metrics.classification import TOP
    from cmd_eval.results.schema import write_result
    from cmd_eval.tasks.recognition import RecognitionTest, recognise, recognition_record

    test = RecognitionTest(
        shards=shards, split_column=split_column, part=part, clips=clips, device=device, workers=workers
    )
    runs: list[RecognitionRun] = []
    for checkpoint in checkpoints:
        run = recognise(checkpoint, test, command=command_words(), progress=show_progress("classify"))
        runs.append(run)
        for note in run.notes:
            click.echo(note, err=True)
        click.echo(_described(run))
        if output is None:
            write_result(run.target, recognition_record([run]))
            click.echo(f"written to {run.target}")
    record = recognition_record(runs)
    if len(runs) > 1:
        for name, label in (("top1", "top-1"), ("top5", f"top-{TOP}")):
            mean = record["mean"][0][name]
            click.echo(f"{label}: mean {mean['value']:.1%}, spread {mean['spread']:.1%} over {mean['splits']} results")
    if output is not None:
        write_result(output, record)
        click.echo(f"written to {output}")


def _described(run: RecognitionRun) -> str:
    split = run.split
    figures = [
        f"{label} {split[name]['value']:.1%} ({split[name]['low']:.1%} to {split[name]['high']:.1%})"
        for name, label in (("top1", "top-1"), ("top5", "top-5"))
    ]
    chance = "not known" if split["chance"] is None else f"{split['chance']:.1%}"
    lines = [f"{split['split_column']}: {', '.join(figures)}, chance {chance}; {split['test']} videos"]
    width = max(len(row["class"]) for row in split["per_class"]) + 2
    lines += [
        f"  {row['class']:{width}}{row['accuracy']:7.1%} of {row['test']:4} ({row['low']:.0%} to {row['high']:.0%})"
        for row in split["per_class"]
        if row["test"]
    ]
    return "\n".join([*lines, "in brackets: 95 % intervals, from resampling the test videos"])


@click.command(short_help="Measure what motion prediction adds.")
@click.argument("shards", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--recipe",
    default="finetune-ucf101",
    shell_complete=complete_recipe(finetune=True),
    help="Named settings; `cmd-train recipes` lists them.",
)
@click.option("--split-column", "columns", multiple=True, default=["split1"], help="Split to run on; repeatable.")
@click.option("--test", "--part", "part", default="test", help="Part that is tested.")
@click.option("--seeds", type=click.IntRange(1), default=3, help="Trainings of each kind and split, with seeds from 0.")
@click.option("--clips", type=click.IntRange(1), default=10, help="Clips a video at test.")
@click.option("--set", "pairs", multiple=True, metavar="SECTION.FIELD=VALUE", help="Change any field, for both sides.")
@click.option("--device", type=_DEVICES, default="auto", help="Where to compute.")
def auxiliary(
    shards: Path,
    out: Path,
    recipe: str,
    columns: tuple[str, ...],
    part: str,
    seeds: int,
    clips: int,
    pairs: tuple[str, ...],
    device: str,
) -> None:
    """Measure what motion prediction adds to supervised training from scratch.

    Runs cmd-train finetune --from scratch with and without --auxiliary motion, for every seed and split, all else
    equal; tests all of them; prints the difference of top-1 with its interval; writes OUT/eval/auxiliary.json. The
    runs lie in OUT. Started again, it keeps finished runs and continues an interrupted one.
    """
    from cmd_eval.experiments.auxiliary import Comparison, compare_auxiliary, table

    comparison = Comparison(
        shards=shards,
        out=out,
        recipe=recipe,
        split_columns=tuple(dict.fromkeys(columns)),
        test_part=part,
        seeds=seeds,
        overrides=pairs,
        clips=clips,
        device=device,
    )
    try:
        run = compare_auxiliary(comparison, command=command_words(), say=_say, progress=show_progress("classify"))
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to continue")
        raise SystemExit(EXIT_INTERRUPTED) from None
    click.echo(table(run.pairs))
    difference = run.difference
    click.echo(
        f"motion prediction changes top-1 by {100 * difference.value:+.1f} points "
        f"(95 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f}, {difference.pairs} pairs of runs)"
    )
    for note in run.record["notes"]:
        click.echo(note)
    click.echo(f"written to {run.target}")


def _say(text: str) -> None:
    click.echo(text, err=True)
