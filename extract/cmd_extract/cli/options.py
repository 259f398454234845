"""What the options of ``run`` ask for, checked: by ``run`` itself, and by ``submit`` before a hundred tasks are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.source import STAGES
from cmd_extract.decode.vectors import choose_reader
from cmd_extract.manifest.records import read_manifest
from cmd_extract.run.index import check_folder
from cmd_extract.run.job import RunJob
from cmd_extract.run.limits import Limits, parse_failure_limit, parse_stages
from cmd_extract.run.plan import ShardPlan, plan_shards
from cmd_extract.schema import RUN_NAME, VideoRecord

_FROM_CONFIG = (
    "codec",
    "gop",
    "quality",
    "fps",
    "frame_short_side",
    "jpeg_quality",
    "transcode",
    "store_frames",
    "segment_seconds",
)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """A run as it was asked for.

    Attributes:
        manifest, root: the manifest file; the folder that its relative paths start from.
        records, plans: its rows; the shards they make.
        config: what decides a shard's content.
        reader: what reads the vectors.
        limits: what one video may cost.
        retry_stages: finished shards with failures of these stages are to be made again.
    """

    manifest: Path
    root: Path
    records: tuple[VideoRecord, ...]
    plans: tuple[ShardPlan, ...]
    config: ExtractConfig
    reader: str
    limits: Limits
    retry_stages: frozenset[str]

    def job(self, out: Path, scratch: Path | None, binary: FfmpegBinary) -> RunJob:
        """What every worker of the run needs to know."""
        return RunJob(
            root=self.root,
            out=out,
            scratch=scratch or out,
            config=self.config,
            binary=binary,
            limits=self.limits,
            manifest=self.manifest,
        )

    def check_folder(self, out: Path) -> None:
        """Refuses an output folder that holds another extraction; FFmpeg's version, another host's, is not compared.

        Raises:
            ShardError: it does.
        """
        path = out / RUN_NAME
        before = json.loads(path.read_text("utf-8")) if path.exists() else {}
        binary = FfmpegBinary(path="", version=before.get("config", {}).get("ffmpeg", ""))
        check_folder(self.job(out, None, binary), self.records, self.plans)


def read_options(manifest: Path, given: Mapping[str, Any]) -> RunOptions:
    """Checks options and reads the manifest; files that are missing are found out when their turn comes.

    Args:
        manifest: the manifest file.
        given: options of ``run`` by the names of its parameters.

    Raises:
        click.UsageError: an option is not allowed.
        ManifestError: the manifest is wrong.
    """
    try:
        config = _read_config(given)
        retry = given["retry_failures"]
        stages = frozenset() if retry is None else parse_stages(retry, STAGES)
        reader = choose_reader(given["reader"])
        if reader == "mvextractor" and config.transcode != "always":
            raise ValueError("reader: mvextractor reads canonical streams only, which needs transcode always")
        if given["max_failures"] is not None:
            parse_failure_limit(given["max_failures"], 0)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    root = given["root"] or manifest.parent
    # One lost file ends no long run.
    records = read_manifest(manifest, root=root, check_paths=False)
    return RunOptions(
        manifest=manifest,
        root=root,
        records=records,
        plans=plan_shards(records, given["videos_per_shard"]),
        config=config,
        reader=reader,
        limits=Limits(timeout_seconds=given["timeout"], max_memory_mb=given["max_memory_mb"]),
        retry_stages=stages,
    )


def _read_config(given: Mapping[str, Any]) -> ExtractConfig:
    width, _, height = given["size"].partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"size: {given['size']!r} is not a size such as 340x256")
    others = {name: given[name] for name in _FROM_CONFIG}
    return ExtractConfig(width=int(width), height=int(height), cell_px=int(given["cell_px"]), **others)
