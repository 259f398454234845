"""Every command of the three groups: what it says when asked for help, and when it is given what it cannot use.

That each does its work is tested where its work is; of ``manifest`` and ``synthesize`` that is here.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cmd_eval.cli.main import main as eval_main
from cmd_extract.cli.main import main as extract_main
from cmd_extract.synthetic.dataset import SyntheticConfig
from cmd_train.cli.main import main as train_main

GROUPS = {"cmd-extract": extract_main, "cmd-train": train_main, "cmd-eval": eval_main}
COMMANDS = [(group, name) for group, command in GROUPS.items() for name in command.commands]

# EMPTY is a folder with nothing in it, NOTES a text, LIST a manifest, OUT is not there yet.
NO_USE = [
    ("cmd-extract", 2, "run LIST OUT --size banana", "size: 'banana' is not a size such as 340x256"),
    ("cmd-extract", 1, "run NOTES OUT", "notes.txt"),
    ("cmd-extract", 2, "submit LIST OUT --dry-run -- --task 0", "--task: not among the options of the tasks"),
    ("cmd-extract", 1, "status EMPTY", "EMPTY"),
    ("cmd-extract", 1, "merge EMPTY", "EMPTY"),
    ("cmd-extract", 1, "verify EMPTY", "EMPTY"),
    ("cmd-extract", 1, "inspect EMPTY", "EMPTY"),
    ("cmd-extract", 1, "preview EMPTY --video v0", "EMPTY"),
    ("cmd-extract", 1, "manifest EMPTY OUT --format folder", "EMPTY"),
    ("cmd-extract", 2, "manifest EMPTY OUT --format ucf101", "--videos"),
    ("cmd-extract", 2, "manifest EMPTY OUT --format folder --videos EMPTY", "--videos"),
    ("cmd-extract", 2, "manifest LIST OUT --missing skip", "--missing"),
    ("cmd-extract", 1, "synthesize OUT --ffmpeg /nowhere/ffmpeg", "/nowhere/ffmpeg"),
    ("cmd-train", 1, "pretrain EMPTY OUT", "EMPTY"),
    ("cmd-train", 1, "pretrain EMPTY OUT --set model.depth=3", "model.depth"),
    ("cmd-train", 2, "pretrain EMPTY", "Missing argument 'RUN_DIR'"),
    ("cmd-train", 1, "finetune EMPTY OUT --from scratch", "EMPTY"),
    ("cmd-train", 2, "finetune EMPTY OUT", "Missing option '--from'"),
    ("cmd-train", 2, "sbatch now", "unexpected extra argument (now)"),
    ("cmd-train", 1, "import-weights NOTES OUT", "notes.txt"),
    ("cmd-train", 1, "recipes imagenet", "'imagenet'"),
    ("cmd-eval", 1, "embed EMPTY EMPTY OUT", "EMPTY"),
    ("cmd-eval", 1, "probe NOTES", "notes.txt"),
    ("cmd-eval", 1, "search LIST --embeddings NOTES", "notes.txt"),
    ("cmd-eval", 2, "decoupling EMPTY", "--both, --context and --motion"),
    ("cmd-eval", 1, "retrieval NOTES", "notes.txt"),
    ("cmd-eval", 1, "retrieval EMPTY EMPTY", "EMPTY"),
    ("cmd-eval", 1, "baseline EMPTY", "EMPTY"),
    ("cmd-eval", 1, "compare NOTES", "notes.txt"),
    ("cmd-eval", 1, "recognition EMPTY EMPTY", "EMPTY"),
    ("cmd-eval", 1, "auxiliary EMPTY OUT", "EMPTY"),
    ("cmd-eval", 1, "evidence EMPTY OUT", "EMPTY"),
    ("cmd-eval", 1, "report EMPTY", "EMPTY"),
]


@pytest.mark.parametrize(("group", "name"), COMMANDS)
def test_every_command_explains_itself(group: str, name: str) -> None:
    result = CliRunner().invoke(GROUPS[group], [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Error" not in result.output
    assert result.output.startswith("Usage: ")


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_tells_its_version_and_its_commands(group: str) -> None:
    told = CliRunner().invoke(GROUPS[group], ["--version"], prog_name=group)
    assert (told.exit_code, told.output.startswith(f"{group}, version ")) == (0, True)
    listed = CliRunner().invoke(GROUPS[group], ["--help"]).output
    assert all(f"\n  {name} " in listed for name in GROUPS[group].commands)


def completions(shell: str, line: str) -> list[str]:
    """What the script of that shell is answered when Tab is pressed at the end of the line."""
    group, *words = line.split(" ")
    # fish tells the begun word itself, the others its number; zsh and bash tell it among the words.
    asked = {"COMP_WORDS": line, "COMP_CWORD": words[-1] if shell == "fish" else str(len(words))}
    instruction = {f"_{group.upper().replace('-', '_')}_COMPLETE": f"{shell}_complete"}
    result = CliRunner().invoke(GROUPS[group], prog_name=group, env=asked | instruction)
    assert result.exit_code == 0, result.output
    return re.split(r"[\n\t,]", result.output)  # each shell has its own way between kind, value and help


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "there", "absent"),
    [
        ("cmd-extract ru", "run", "merge"),
        ("cmd-extract run --wor", "--workers", "--root"),
        ("cmd-extract run --transcode n", "never", "always"),
        ("cmd-train pretrain --recipe ", "ucf101", "finetune-ucf101"),
        ("cmd-train finetune --recipe finetune-u", "finetune-ucf101", "finetune-demo"),
        ("cmd-train recipes ", "finetune-ucf101", "pretrain"),
        ("cmd-train recipes u", "ucf101", "finetune-ucf101"),
        ("cmd-eval evidence --auxiliary-recipe ", "finetune-demo", "demo"),
    ],
)
def test_the_tab_key_offers_what_fits(shell: str, line: str, there: str, absent: str) -> None:
    offered = completions(shell, line)
    assert there in offered
    assert absent not in offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])  # the one for bash would look for bash
@pytest.mark.parametrize("group", GROUPS)
def test_the_scripts_of_the_shells_ask_as_is_answered(group: str, shell: str) -> None:
    variable = f"_{group.upper().replace('-', '_')}_COMPLETE"
    result = CliRunner().invoke(GROUPS[group], prog_name=group, env={variable: f"{shell}_source"})
    assert result.exit_code == 0, result.output
    assert f"{variable}={shell}_complete" in result.output
    assert "COMP_WORDS=" in result.output


@pytest.mark.parametrize(("group", "name"), COMMANDS)
def test_an_unknown_option_is_named_with_a_hint(group: str, name: str) -> None:
    result = CliRunner().invoke(GROUPS[group], [name, "--no-such-option"], prog_name=group)
    assert result.exit_code == 2
    assert "Error: No such option" in result.output
    assert "--no-such-option" in result.output
    assert f"Try '{group} {name} --help' for help." in result.output


def words(line: str, folder: Path) -> list[str]:
    (folder / "EMPTY").mkdir()
    (folder / "notes.txt").write_text("milk, eggs\n")
    (folder / "list.csv").write_text("id,path\nv0,v0.mp4\n")
    places = {"EMPTY": folder / "EMPTY", "NOTES": folder / "notes.txt", "LIST": folder / "list.csv"}
    return [str(places.get(word, folder / "OUT" if word == "OUT" else word)) for word in line.split()]


def all_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(("group", "code", "line", "told"), NO_USE)
def test_what_is_of_no_use_is_told_in_one_sentence(
    group: str, code: int, line: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = words(line, tmp_path)
    before = all_below(tmp_path)
    result = CliRunner().invoke(GROUPS[group], arguments, prog_name=group)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    errors = [text for text in result.output.splitlines() if text.startswith("Error: ")]
    assert len(errors) == 1, result.output
    assert result.output.rstrip().endswith(errors[0]), "nothing after it"
    assert told in errors[0]
    assert all_below(tmp_path) == before, "nothing is written"


def test_each_command_is_given_something_of_no_use() -> None:
    assert {(group, line.split()[0]) for group, _, line, _ in NO_USE} == set(COMMANDS)


@pytest.mark.parametrize("group", GROUPS)
def test_debug_shows_where_an_error_comes_from(group: str, tmp_path: Path) -> None:
    line = next(line for other, code, line, _ in NO_USE if (other, code) == (group, 1))
    result = CliRunner().invoke(GROUPS[group], ["--debug", *words(line, tmp_path)])
    assert isinstance(result.exception, ValueError | OSError | RuntimeError), result.output
    assert not isinstance(result.exception, click.exceptions.Exit)


def test_a_folder_becomes_a_manifest(tmp_path: Path) -> None:
    for name in ("jump/a.mp4", "jump/b.avi", "walk/c.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    result = CliRunner().invoke(extract_main, ["manifest", str(tmp_path / "videos"), str(tmp_path / "all.csv")])
    assert result.exit_code == 0, result.output
    assert "3 videos (folder), 2 classes, split columns: none" in result.output
    assert (tmp_path / "all.csv").read_text("utf-8").count("videos/jump/") == 2


def test_synthesize_makes_videos_and_their_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One class of each kind instead of six: the command has no option for it, and the others take their time.
    small = functools.partial(SyntheticConfig, motions=("left",), contexts=("bricks",))
    monkeypatch.setattr("cmd_extract.synthetic.dataset.SyntheticConfig", small)
    arguments = [
        "synthesize",
        str(tmp_path / "out"),
        "--videos-per-combination",
        "2",
        "--frames",
        "3",
        "--workers",
        "1",
    ]
    result = CliRunner().invoke(extract_main, arguments)
    assert result.exit_code == 0, result.output
    assert "a manifest of synthetic videos" in result.output
    rows = (tmp_path / "out" / "manifest.csv").read_text("utf-8").splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["left-bricks-00", "left-bricks-01"]
    assert len(list((tmp_path / "out" / "videos").glob("*.mp4"))) == 2
