"""Help texts and error messages of every command.

What the commands do is tested elsewhere, except for ``manifest`` and ``synthesize``, which are tested here.
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

# EMPTY is an empty folder, NOTES a text file, LIST a manifest; OUT does not exist.
BAD_INPUT = [
    ("cmd-extract", 2, "run LIST OUT --size banana", "size: must be WxH such as 340x256, got 'banana'"),
    (
        "cmd-extract",
        2,
        "run LIST OUT --gop 1_2",
        "'--gop': '1_2' is not a valid integer; write the number in the digits",
    ),
    ("cmd-extract", 1, "run NOTES OUT", "notes.txt"),
    ("cmd-extract", 2, "submit LIST OUT --dry-run -- --task 0", "--task: cannot be passed to the tasks"),
    ("cmd-extract", 1, "status EMPTY", "EMPTY"),
    ("cmd-extract", 1, "merge EMPTY", "EMPTY"),
    ("cmd-extract", 1, "publish EMPTY s3://bucket/folder", "EMPTY"),
    ("cmd-extract", 2, "fetch https://host/folder OUT", "must start with s3:// or gs://"),
    ("cmd-extract", 2, "publish EMPTY https://host/folder", "must start with s3:// or gs://"),
    ("cmd-extract", 1, "inner-splits LIST OUT --split-column split1", "'split1' does not exist"),
    ("cmd-extract", 1, "relabel EMPTY LIST", "EMPTY"),
    ("cmd-extract", 1, "verify EMPTY", "EMPTY"),
    ("cmd-extract", 1, "inspect EMPTY", "EMPTY"),
    ("cmd-extract", 1, "preview EMPTY --video v0", "EMPTY"),
    ("cmd-extract", 1, "manifest EMPTY OUT --format folder", "EMPTY"),
    ("cmd-extract", 2, "manifest EMPTY OUT --format ucf101", "--videos"),
    ("cmd-extract", 2, "manifest EMPTY OUT --format folder --videos EMPTY", "--videos"),
    ("cmd-extract", 2, "manifest LIST OUT --missing skip", "--missing"),
    ("cmd-extract", 2, "manifest s3://bucket/list.csv OUT --format csv", "csv requires a local SOURCE"),
    ("cmd-extract", 2, "manifest s3://bucket/folder OUT --root EMPTY", "--root: not used with a URL"),
    ("cmd-extract", 2, "manifest s3://bucket/folder OUT --videos EMPTY", "--videos: not used with a URL"),
    ("cmd-extract", 2, "manifest s3://bucket/folder OUT --missing skip", "--missing: not used with a URL"),
    ("cmd-extract", 1, "synthesize OUT --ffmpeg /nowhere/ffmpeg", "/nowhere/ffmpeg"),
    ("cmd-train", 1, "pretrain EMPTY OUT", "EMPTY"),
    ("cmd-train", 1, "pretrain EMPTY OUT --set model.depth=3", "model.depth"),
    ("cmd-train", 2, "pretrain EMPTY", "Missing argument 'RUN_DIR'"),
    ("cmd-train", 1, "finetune EMPTY OUT --from scratch", "EMPTY"),
    ("cmd-train", 2, "finetune EMPTY OUT", "Missing option '--from'"),
    ("cmd-train", 2, "sbatch now", "unexpected extra argument (now)"),
    ("cmd-train", 1, "import-weights NOTES OUT", "notes.txt"),
    ("cmd-train", 1, "export EMPTY OUT", "EMPTY"),
    ("cmd-train", 1, "recipes imagenet", "'imagenet'"),
    ("cmd-eval", 1, "embed EMPTY EMPTY OUT", "EMPTY"),
    ("cmd-eval", 1, "probe NOTES", "notes.txt"),
    ("cmd-eval", 1, "import-features NOTES LIST OUT", "notes.txt"),
    ("cmd-eval", 1, "export-features NOTES OUT", "notes.txt"),
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
def test_every_command_has_help(group: str, name: str) -> None:
    result = CliRunner().invoke(GROUPS[group], [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Error" not in result.output
    assert result.output.startswith("Usage: ")


@pytest.mark.parametrize("group", GROUPS)
def test_numbers_of_all_options_are_plain(group: str) -> None:
    numbers = (click.types.IntParamType, click.types.FloatParamType)
    found = [p for c in GROUPS[group].commands.values() for p in c.params if isinstance(p.type, numbers)]
    assert found
    for param in found:
        for text in ("6_4", "\N{FULLWIDTH DIGIT SIX}4"):
            with pytest.raises(click.BadParameter, match="write the number in the digits 0 to 9, without underscores"):
                param.type(text, param)


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_shows_its_version_and_commands(group: str) -> None:
    version = CliRunner().invoke(GROUPS[group], ["--version"], prog_name=group)
    assert (version.exit_code, version.output.startswith(f"{group}, version ")) == (0, True)
    help_text = CliRunner().invoke(GROUPS[group], ["--help"]).output
    assert all(f"\n  {name} " in help_text for name in GROUPS[group].commands)


def completions(shell: str, line: str) -> list[str]:
    """Return the completions offered to a shell when Tab is pressed at the end of the line."""
    group, *words = line.split(" ")
    # fish passes the incomplete word, bash and zsh its index.
    request = {"COMP_WORDS": line, "COMP_CWORD": words[-1] if shell == "fish" else str(len(words))}
    instruction = {f"_{group.upper().replace('-', '_')}_COMPLETE": f"{shell}_complete"}
    result = CliRunner().invoke(GROUPS[group], prog_name=group, env=request | instruction)
    assert result.exit_code == 0, result.output
    return re.split(r"[\n\t,]", result.output)  # separators between kind, value and help differ between shells


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "offered", "not_offered"),
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
def test_completion_offers_matching_words(shell: str, line: str, offered: str, not_offered: str) -> None:
    found = completions(shell, line)
    assert offered in found
    assert not_offered not in found


@pytest.mark.parametrize("shell", ["zsh", "fish"])  # bash_source runs bash to check its version
@pytest.mark.parametrize("group", GROUPS)
def test_completion_scripts_use_the_expected_variables(group: str, shell: str) -> None:
    variable = f"_{group.upper().replace('-', '_')}_COMPLETE"
    result = CliRunner().invoke(GROUPS[group], prog_name=group, env={variable: f"{shell}_source"})
    assert result.exit_code == 0, result.output
    assert f"{variable}={shell}_complete" in result.output
    assert "COMP_WORDS=" in result.output


@pytest.mark.parametrize(("group", "name"), COMMANDS)
def test_unknown_option_is_named_with_a_hint(group: str, name: str) -> None:
    result = CliRunner().invoke(GROUPS[group], [name, "--no-such-option"], prog_name=group)
    assert result.exit_code == 2
    assert "Error: No such option" in result.output
    assert "--no-such-option" in result.output
    assert f"Try '{group} {name} --help' for help." in result.output


def prepare(line: str, folder: Path) -> list[str]:
    """Create the input files and return the arguments with their paths filled in."""
    (folder / "EMPTY").mkdir()
    (folder / "notes.txt").write_text("milk, eggs\n")
    (folder / "list.csv").write_text("id,path\nv0,v0.mp4\n")
    paths = {"EMPTY": folder / "EMPTY", "NOTES": folder / "notes.txt", "LIST": folder / "list.csv"}
    return [str(paths.get(word, folder / "OUT" if word == "OUT" else word)) for word in line.split()]


@pytest.mark.parametrize(("group", "code", "line", "message"), BAD_INPUT)
def test_bad_input_is_reported_in_one_line(
    group: str, code: int, line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = prepare(line, tmp_path)
    before = set(tmp_path.rglob("*"))
    result = CliRunner().invoke(GROUPS[group], arguments, prog_name=group)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    errors = [text for text in result.output.splitlines() if text.startswith("Error: ")]
    assert len(errors) == 1, result.output
    assert result.output.rstrip().endswith(errors[0]), "the error is the last line"
    assert message in errors[0]
    assert set(tmp_path.rglob("*")) == before, "no files are written"


def test_every_command_is_tested_with_bad_input() -> None:
    assert {(group, line.split()[0]) for group, _, line, _ in BAD_INPUT} == set(COMMANDS)


@pytest.mark.parametrize("group", GROUPS)
def test_debug_raises_the_original_error(group: str, tmp_path: Path) -> None:
    line = next(line for other, code, line, _ in BAD_INPUT if (other, code) == (group, 1))
    result = CliRunner().invoke(GROUPS[group], ["--debug", *prepare(line, tmp_path)])
    assert isinstance(result.exception, ValueError | OSError | RuntimeError), result.output
    assert not isinstance(result.exception, click.exceptions.Exit)


def test_manifest_of_a_folder(tmp_path: Path) -> None:
    for name in ("jump/a.mp4", "jump/b.avi", "walk/c.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    result = CliRunner().invoke(extract_main, ["manifest", str(tmp_path / "videos"), str(tmp_path / "all.csv")])
    assert result.exit_code == 0, result.output
    assert "3 videos (folder), 2 classes, split columns: none" in result.output
    assert (tmp_path / "all.csv").read_text("utf-8").count("videos/jump/") == 2


def test_synthesize_writes_videos_and_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One class of each kind, to save time; the command has no option for this.
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
    assert "manifest of the synthetic videos" in result.output
    rows = (tmp_path / "out" / "manifest.csv").read_text("utf-8").splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["left-bricks-00", "left-bricks-01"]
    assert len(list((tmp_path / "out" / "videos").glob("*.mp4"))) == 2
