"""``OUT/tasks/plan.npz``: the plan of a manifest that has been read, so that others need not read it again.

The file is only a copy: it counts if it was made from the same bytes and for the same parts, and is written again if it
is missing or damaged.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmd_extract.manifest.rows import ManifestFile
from cmd_extract.run.plan import ManifestPart, Planned, ShardPlans
from cmd_extract.system.files import write_whole

PLAN_NAME = "tasks/plan.npz"
_VERSION = 1
_ARRAYS = ("first_rows", "starts", "hashes")


def save_plan(out: Path, planned: Planned) -> None:
    """Write the plan of a manifest file to an output folder, unless it is there already."""
    if not isinstance(planned.plans.source, ManifestFile) or planned.is_saved:
        return
    path = out / PLAN_NAME
    path.parent.mkdir(exist_ok=True)
    head = json.dumps({"version": _VERSION, "manifest_sha256": planned.manifest_sha256, "parts": planned.parts})
    arrays = {name: getattr(planned.plans, name) for name in _ARRAYS}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez(stream, head=np.frombuffer(head.encode(), np.uint8), **arrays)

    write_whole(path, write)


def load_plan(
    out: Path, source: ManifestFile, recorded: Sequence[ManifestPart], videos_per_shard: int | None
) -> Planned | None:
    """Return the plan in an output folder if it is that of ``plan.plan_shards`` for the recorded parts.

    Raises:
        FileNotFoundError: the manifest does not exist.
    """
    try:
        with np.load(out / PLAN_NAME, allow_pickle=False) as file:
            head = json.loads(file["head"].tobytes())
            arrays = {name: file[name] for name in _ARRAYS}
        parts = tuple(ManifestPart(*part) for part in head["parts"])
        if head["version"] != _VERSION or parts != tuple(recorded):
            return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):  # missing or damaged
        return None
    if videos_per_shard not in (None, parts[-1].videos_per_shard):
        return None
    with source.path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != head["manifest_sha256"]:
        return None
    plans = ShardPlans(source=source, numbers=range(len(arrays["hashes"])), **arrays)
    return Planned(plans, parts, sha256, is_saved=True)
