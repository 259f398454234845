from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of the folder of videos and their extraction ``out`` that a test file makes once as ``original``."""
    copy = shutil.copytree(original, tmp_path / "copy")
    record = copy / "out" / "run.json"
    record.write_text(record.read_text().replace(str(original), str(copy)))
    return copy
