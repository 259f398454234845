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
    VIDEOS,
    WITH_FAILURES,
    SmallExtraction,
    write_gated_ffmpeg,
    write_manifest,
)
from tests.cluster.slurm import SlurmCluster, missing_programs


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A real Slurm of 4 virtual nodes with 2 cores each, for the whole session.

    ``make test-cluster`` installs what it needs. Where it could have done so, its absence is a failure.
    """
    missing, root = missing_programs(), os.geteuid() == 0
    if missing and root and shutil.which("apt-get"):
        pytest.fail(f"Slurm is not installed ({', '.join(missing)}); `make test-cluster` installs it")
    if missing:
        pytest.skip(f"no Slurm here ({', '.join(missing)}), and it cannot be installed: that takes root and apt-get")
    if not root:
        pytest.skip("Slurm's virtual nodes need root (a mount namespace each)")
    # Not pytest's own folder: sockets may have a path of 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munged insists
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
    done = CliRunner().invoke(main, ["run", str(manifest), str(folder / "one"), *SHARD_OPTIONS])
    assert done.exit_code == WITH_FAILURES, done.output
    assert "damaged   1" in done.output
    return SmallExtraction(manifest=manifest, reference=folder / "one", ffmpeg=gated, gates=folder / "gates")
