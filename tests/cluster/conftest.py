from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cmd_extract.cli.main import main
from cmd_extract.decode.ffmpeg import FfmpegBinary
from tests.cluster.extraction import (
    SHARD_OPTIONS,
    SOME_FAILED,
    VIDEOS,
    SmallExtraction,
    write_gated_ffmpeg,
    write_manifest,
)
from tests.cluster.slurm import SlurmCluster, missing_programs


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A real Slurm cluster of 4 virtual nodes with 2 cores each.

    If Slurm is missing, the tests fail where ``make test-cluster`` could have installed it, and are skipped elsewhere.
    """
    missing, root = missing_programs(), os.geteuid() == 0
    if missing and root and shutil.which("apt-get"):
        pytest.fail(f"Slurm is not installed ({', '.join(missing)}); `make test-cluster` installs it")
    if missing:
        pytest.skip(f"Slurm is not installed ({', '.join(missing)}), and installing it needs root and apt-get")
    if not root:
        pytest.skip("virtual Slurm nodes need root, for a mount namespace each")
    # pytest's own folder would be too deep: socket paths are limited to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # required by munged
    try:
        with SlurmCluster(folder, nodes=4, cpus=2) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def small_extraction(
    tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path], ffmpeg: FfmpegBinary
) -> SmallExtraction:
    folder = tmp_path_factory.mktemp("small")
    for i in range(VIDEOS - 1):
        options = ("-c:v", "libx264", "-movflags", "+faststart", "-vf", f"hue=h={30 * i}")
        make_video(folder / f"v{i:02d}.mp4", *options, frames=20 + i)
    damaged = folder / "v03.mp4"
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size * 2 // 3])
    manifest, gated = write_manifest(folder), write_gated_ffmpeg(folder, ffmpeg)
    result = CliRunner().invoke(main, ["run", str(manifest), str(folder / "single"), *SHARD_OPTIONS])
    assert result.exit_code == SOME_FAILED, result.output
    assert "damaged   1" in result.output
    return SmallExtraction(manifest=manifest, reference=folder / "single", ffmpeg=gated, gates=folder / "gates")
