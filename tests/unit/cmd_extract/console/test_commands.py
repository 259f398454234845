from __future__ import annotations

import click
import pytest
from click.testing import CliRunner, Result

from cmd_extract.console.commands import EXIT_INTERRUPTED, CommandGroup, command_line
from cmd_extract.errors import FailureLimitError, FfmpegError, ManifestError, OutputError, ShardError

ERRORS: dict[str, BaseException] = {
    "manifest": ManifestError("list.csv, line 3: no path"),
    "shard": ShardError("shards: no index.json"),
    "ffmpeg": FfmpegError("ffmpeg: not found"),
    "os": FileNotFoundError(2, "No such file or directory", "list.csv"),
    "output": OutputError("cannot write in shards: No space left on device"),
    "limit": FailureLimitError(3, 20),
    "silent": ValueError(),
    "bug": KeyError("seed"),
    "interrupt": KeyboardInterrupt(),
}


@click.group(cls=CommandGroup, interrupted="Run it again to continue.")
@click.option("--debug", is_flag=True)
def main(debug: bool) -> None:
    """Test commands."""


@main.command()
@click.argument("kind")
def fail(kind: str) -> None:
    """Raise an error."""
    raise ERRORS[kind]


@main.command()
@click.argument("words", nargs=-1)
@click.option("--abort", is_flag=True)
def echo(words: tuple[str, ...], abort: bool) -> None:
    """Print the command line."""
    if abort:
        raise click.Abort
    click.echo(command_line())


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="cmd-test")


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("manifest", 1, "Error: list.csv, line 3: no path\n"),
        ("shard", 1, "Error: shards: no index.json\n"),
        ("ffmpeg", 1, "Error: ffmpeg: not found\n"),
        ("os", 1, "Error: [Errno 2] No such file or directory: 'list.csv'\n"),
        ("silent", 1, "Error: ValueError\n"),
    ],
)
def test_user_errors_are_one_line(kind: str, code: int, message: str) -> None:
    result = call("fail", kind)
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", message)


def test_errors_say_how_to_continue() -> None:
    output = call("fail", "output")
    assert output.exit_code == 1
    assert "No space left on device. Finished shards are kept." in output.stderr
    limit = call("fail", "limit")
    assert limit.exit_code == FailureLimitError.exit_code == 4
    assert "Stopped: 3 of 20 videos failed, more than --max-failures allows." in limit.stderr
    assert "run the same command again" in output.stderr
    assert "run the same command again" in limit.stderr


@pytest.mark.parametrize("kind", ["manifest", "os"])
def test_debug_keeps_the_traceback_of_user_errors(kind: str) -> None:
    result = call("--debug", "fail", kind)
    assert result.exception is ERRORS[kind]
    assert result.stderr == ""


def test_debug_keeps_the_exit_code_of_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    result = call("--debug", "fail", "limit")
    assert result.exit_code == FailureLimitError.exit_code
    assert "Traceback" in result.stderr + capsys.readouterr().err


def test_bugs_keep_their_traceback() -> None:
    assert call("fail", "bug").exception is ERRORS["bug"]


@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_ctrl_c_says_how_to_continue(debug: tuple[str, ...]) -> None:
    result = call(*debug, "fail", "interrupt")
    assert (result.exit_code, result.stderr) == (EXIT_INTERRUPTED, "Interrupted. Run it again to continue.\n")


def test_commands_are_listed_in_the_order_they_were_added() -> None:
    result = call("--help")
    assert result.exit_code == 0
    assert result.output.index("fail ") < result.output.index("echo ")


def test_usage_errors_and_aborts_are_those_of_click() -> None:
    assert call("fail").exit_code == 2
    assert call("fail", "--help").exit_code == 0
    aborted = call("echo", "--abort")
    assert (aborted.exit_code, aborted.stderr) == (1, "Aborted!\n")


def test_command_line_is_quoted_for_a_shell() -> None:
    assert call("--debug", "echo", "two words", "it's", "--", "-x").output == (
        "cmd-test --debug echo 'two words' 'it'\"'\"'s' -- -x\n"
    )
