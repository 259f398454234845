from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cluster.extraction import SOME_FAILED, results
from tests.integration.cmd_extract.extraction import X264, MakeVideo, call
from tests.integration.cmd_extract.task_runs import OPTIONS


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of the folder of videos and their extraction ``out`` that a test file makes once as ``original``."""
    copy = shutil.copytree(original, tmp_path / "copy")
    record = copy / "out" / "run.json"
    record.write_text(record.read_text().replace(str(original), str(copy)))
    return copy


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    """Manifest of nine rows; the first file is truncated, the last is missing."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(1, 8):
        make_video(folder / f"v{i}.mp4", *X264, frames=5 + i, size="64x48")
    truncated = make_video(
        folder / "v0.mp4", *X264, "-movflags", "+faststart", source="mandelbrot", frames=20, size="64x48"
    )
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size * 2 // 3])
    path = folder / "manifest.csv"
    path.write_text("id,path\n" + "".join(f"v{i},v{i}.mp4\n" for i in range(9)))
    return path


@pytest.fixture(scope="session")
def reference(manifest: Path) -> dict[str, str]:
    """Checksums of the output of a single run of ``manifest``."""
    out = manifest.parent / "single"
    assert call("run", manifest, out, *OPTIONS)[0] == SOME_FAILED
    return results(out)
