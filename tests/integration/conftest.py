from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from extract.cli import main as extract_main


@pytest.fixture(scope="session")
def few_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 short synthetic videos in several shards."""
    folder = tmp_path_factory.mktemp("few")
    arguments = ["synthesize", str(folder / "videos"), "--videos-per-combination", "2", "--frames", "24"]
    assert CliRunner().invoke(extract_main, arguments).exit_code == 0
    manifest = folder / "videos" / "manifest.csv"
    lines = manifest.read_text().splitlines()
    manifest.write_text(
        "\n".join([lines[0], *[line for line in lines[1:] if line.startswith(("left-", "up-"))]]) + "\n"
    )
    arguments = ["run", str(manifest), str(folder / "shards"), "--workers", "2", "--videos-per-shard", "7"]
    result = CliRunner().invoke(extract_main, arguments)
    assert result.exit_code == 0, result.output
    return folder / "shards"
