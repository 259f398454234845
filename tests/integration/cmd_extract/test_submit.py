"""Dry runs and rejected options of `cmd-extract submit`; tests/cluster submits to a real Slurm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cmd_extract.cli.main import main
from tests.command_line import call

OPTIONS = ("--videos-per-shard", "2", "--workers", "1", "--size", "64x48", "--frame-short-side", "24")


def run(*arguments: object) -> tuple[int, str]:
    result = call(main, *arguments)
    return result.exit_code, result.output


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_manifest(folder: Path, rows: int) -> Path:
    path = folder / "manifest.csv"
    path.write_text("id,path\n" + "".join(f"v{i},v{i}.mp4\n" for i in range(rows)))
    return path


def test_submit_shows_its_scripts_and_rejects_invalid_options_of_run(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, 9)
    out = tmp_path / "it's 100% mine"
    options = ("--partition", "main", "--array-parallelism", 2, "--num-tasks", 3, "--time", "1:00", "--mem", "2G")
    code, output = run("submit", manifest, out, *options, "--dry-run", "--", "--videos-per-shard", 2)
    assert code == 0, output
    lines = output.splitlines()
    expected = ("--array=0-2%2", "--partition=main", "--time=1:00", "--mem=2G", "--requeue")
    assert all(f"#SBATCH {option}" in lines for option in expected)
    assert f'#SBATCH --output="{tmp_path}/it\'s 100%% mine/jobs/logs/extract-%A_%a.log"' in lines
    assert any(line.startswith("exec ") and line.endswith("--num-tasks 3 --videos-per-shard 2") for line in lines)
    assert not out.exists()
    code, output = run("submit", manifest, out, "--dry-run", "--", "--videos-per-shrad", 2)
    assert code == 2
    assert "--videos-per-shrad" in output
    code, output = run("submit", manifest, out, "--dry-run", "--", "--transcode", "never", "--fps", 25)
    assert code == 2, "values are checked, not only names"
    assert "fps" in output


@pytest.mark.parametrize(
    "arguments",
    [("--task", 0), ("--num-tasks", 4), ("--no-share",), ("--backend", "dask"), ("--retry-failures", "all")],
)
def test_submit_rejects_options_that_contradict_an_array(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    manifest = write_manifest(tmp_path, 9)
    code, output = run("submit", manifest, tmp_path / "out", "--dry-run", "--", *arguments)
    assert code == 2
    assert f"{arguments[0]}: cannot be passed to the tasks" in output


def test_submit_rejects_a_folder_with_another_extraction(make_video: Callable[..., Path], tmp_path: Path) -> None:
    make_video(tmp_path / "v0.mp4", "-c:v", "libx264", frames=6, size="64x48")
    manifest, out = write_manifest(tmp_path, 1), tmp_path / "out"
    assert run("run", manifest, out, *OPTIONS)[0] == 0
    before = contents(out)
    code, output = run("submit", manifest, out, "--dry-run", "--", *OPTIONS)
    assert code == 0, output
    code, output = run("submit", manifest, out, "--dry-run", "--", *OPTIONS, "--gop", 6)
    assert code == 1
    assert "gop: 12 is now 6" in output
    assert contents(out) == before
