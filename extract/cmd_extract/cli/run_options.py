"""Validated options of ``run``, also used by ``submit`` to reject wrong options before any task starts."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cmd_extract.cli import options
from cmd_extract.cluster.shares import find_share
from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.vectors import choose_reader
from cmd_extract.errors import STAGES
from cmd_extract.manifest.rows import ManifestFile
from cmd_extract.run.job import Limits, RunJob
from cmd_extract.run.plan import Planned, ShardLimits, Share
from cmd_extract.run.record import RunIdentity, check_folder, plan_run, read_record
from cmd_extract.run.work import Backend
from cmd_extract.sources.location import Root
from cmd_extract.system.validation import parse_number

_CONFIG_OPTIONS = (
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
    """Validated options of a run.

    Attributes:
        manifest, root: manifest file, and folder, or URL prefix, to which its paths are relative.
        planned: the shards planned for the rows of the manifest.
        config: settings that determine the content of shards.
        reader: reader of motion vectors.
        limits: limits per video.
        retry_stages: finished shards with failures of these stages are extracted again.
    """

    manifest: Path
    root: Root
    planned: Planned
    config: ExtractConfig
    reader: str
    limits: Limits
    retry_stages: frozenset[str]

    def job(self, out: Path, scratch: Path | None, binary: FfmpegBinary) -> RunJob:
        """Return the settings for the workers."""
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
        """Check that the output folder is new or belongs to this extraction.

        FFmpeg's version is not compared: the tasks may find another one on their hosts.

        Raises:
            ShardError: the folder contains another extraction.
        """
        record = read_record(out)
        ffmpeg_version = str(record.identity.config.get("ffmpeg", "")) if record else ""
        job = self.job(out, None, FfmpegBinary(path="", version=ffmpeg_version))
        check_folder(job, RunIdentity.of(job, self.planned))


def parse_run_options(manifest: Path, out: Path, given: Mapping[str, Any]) -> RunOptions:
    """Validate options and read the manifest. Missing video files are not an error here.

    Args:
        manifest: manifest file.
        out: output folder.
        given: options of ``run`` by parameter name.

    Raises:
        click.UsageError: an option is invalid.
        ManifestError: the manifest is invalid.
        ShardError: the output folder has an invalid ``run.json``.
    """
    try:
        config = _parse_config(given)
        retry = given["retry_failures"]
        stages = frozenset() if retry is None else parse_stages(retry)
        reader = choose_reader(given["reader"])
        if reader == "mvextractor" and config.transcode != "always":
            raise ValueError(f"reader: mvextractor requires transcode always, got {config.transcode}")
        limits = options.limits_of(given)
        ShardLimits(given["videos_per_shard"], given["shard_gb"]).check()
        if given["max_failures"] is not None:
            parse_failure_limit(given["max_failures"], 0)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    root = given["root"] or manifest.parent
    return RunOptions(
        manifest=manifest,
        root=root,
        planned=plan_run(
            out,
            ManifestFile(manifest),
            given["videos_per_shard"],
            shard_gb=given["shard_gb"],
            root=root,
        ),
        config=config,
        reader=reader,
        limits=limits,
        retry_stages=stages,
    )


def _parse_config(given: Mapping[str, Any]) -> ExtractConfig:
    width, _, height = given["size"].partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"size: must be WxH such as 340x256, got {given['size']!r}")
    others = {name: given[name] for name in _CONFIG_OPTIONS}
    return ExtractConfig(width=int(width), height=int(height), cell_px=int(given["cell_px"]), **others)


def parse_failure_limit(text: str, rows: int) -> int:
    """Return how many videos may fail.

    Args:
        text: a count (``20``) or a percentage of the manifest rows (``5%``).
        rows: number of manifest rows.

    Raises:
        ValueError: ``text`` is neither.
    """
    number = text.removesuffix("%")
    value = parse_number(number)
    if value is not None and text.endswith("%") and value <= 100:
        return int(value * rows / 100)
    if value is not None and number == text and value.denominator == 1:
        return int(value)
    raise ValueError(f"max_failures: must be a count such as 20 or a percentage such as 5%, got {text!r}")


def parse_stages(text: str) -> frozenset[str]:
    """Return the stages named in ``text``: ``all``, or stages separated by commas.

    Raises:
        ValueError: a stage is unknown.
    """
    stages = set(STAGES) if text == "all" else {part.strip() for part in text.split(",")}
    if not stages <= set(STAGES):
        raise ValueError(f"retry_failures: must be all or stages out of {','.join(STAGES)}, got {text!r}")
    return frozenset(stages)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Validated options of ``run`` for distributed extraction.

    Attributes:
        share: share of this task; None to build all shards.
        stale_after: seconds without a heartbeat after which a task counts as dead.
        backend: builds the shards; None for processes on this machine.
    """

    share: Share | None
    stale_after: float
    backend: Backend | None


def parse_cluster_options(given: Mapping[str, Any], environ: Mapping[str, str], workers: int) -> ClusterOptions:
    """Validate the options for distributed extraction.

    Args:
        given: options of ``run`` by parameter name.
        environ: environment variables, perhaps of a Slurm job array.
        workers: number of processes of a local Dask cluster.

    Raises:
        click.UsageError: the options contradict each other or the environment.
    """
    task, num_tasks = given["task"], given["num_tasks"]
    scheduler, scheduler_file = given["scheduler"], given["scheduler_file"]
    use_dask = given["backend"] == "dask"
    if not use_dask and (scheduler or scheduler_file):
        raise click.UsageError("--scheduler and --scheduler-file require --backend dask")
    try:
        share = find_share(environ, task, num_tasks, array=given["array"])
        backend = _dask_backend(scheduler, scheduler_file, workers) if use_dask else None
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if share and use_dask:
        raise click.UsageError("--backend dask distributes the shards itself; remove --task, --num-tasks and --array")
    if share and given["publish"] is not None:
        raise click.UsageError("--publish copies a finished extraction; pass it to `cmd-extract merge` instead")
    if share and given["retry_failures"] is not None:
        # Tasks recognize remaining work by missing shards, while a retry replaces existing ones.
        raise click.UsageError(
            "--retry-failures cannot be used in one of several tasks; run it in a single process after "
            "`cmd-extract merge`"
        )
    return ClusterOptions(share=share, stale_after=given["stale_after"], backend=backend)


def _dask_backend(address: str | None, scheduler_file: Path | None, workers: int) -> Backend:
    from cmd_extract.cluster.dask import DaskCluster, build_with_dask

    cluster = DaskCluster(address=address, scheduler_file=scheduler_file, workers=workers)
    return functools.partial(build_with_dask, cluster)
