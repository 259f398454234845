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
from cmd_extract.run.plan import ManifestPart, Planned, ShardLimits, ShardPlans
from cmd_extract.system.files import atomic_write

PLAN_NAME = "tasks/plan.npz"
_VERSION = 1
_ARRAYS = ("first_rows", "starts", "hashes")


def save_plan(out: Path, planned: Planned) -> None:
    """Write the plan of a manifest file to an output folder, unless it is there already."""
    if not isinstance(planned.plans.source, ManifestFile) or planned.is_saved:
        return
    path = out / PLAN_NAME
    path.parent.mkdir(exist_ok=True)
    values = {name: getattr(planned, name) for name in ("manifest_sha256", "parts", "recorded", "limits")}
    head = json.dumps({"version": _VERSION, **values})
    arrays = {name: getattr(planned.plans, name) for name in _ARRAYS}
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, head=np.frombuffer(head.encode(), np.uint8), **arrays)


def load_plan(out: Path, source: ManifestFile, recorded: Sequence[ManifestPart], limits: ShardLimits) -> Planned | None:
    """Return the plan in an output folder if ``division.plan_shards`` has made it for the same parts and limits.

    Also if its parts have been recorded since. So the tasks of an array, which start at about the same time, look up
    the sizes of the sources only once.

    Raises:
        FileNotFoundError: the manifest does not exist.
    """
    try:
        with np.load(out / PLAN_NAME, allow_pickle=False) as file:
            head = json.loads(file["head"].tobytes())
            arrays = {name: file[name] for name in _ARRAYS}
        parts, before = (tuple(map(ManifestPart.of, head[key])) for key in ("parts", "recorded"))
        made_for = (before, ShardLimits(*head["limits"]))
        if head["version"] != _VERSION:
            return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):  # missing or damaged
        return None
    last = ShardLimits(parts[-1].videos_per_shard, parts[-1].shard_gb)
    is_recorded = parts == tuple(recorded) and all(
        given in (None, own) for given, own in zip(limits, last, strict=True)
    )
    if not is_recorded and made_for != (tuple(recorded), limits):
        return None
    with source.path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != head["manifest_sha256"]:
        return None
    plans = ShardPlans(source=source, numbers=range(len(arrays["hashes"])), **arrays)
    return Planned(plans, parts, sha256, tuple(recorded), limits, is_saved=True)
