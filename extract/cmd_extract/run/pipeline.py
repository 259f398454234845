"""Runs an extraction: plans shards, has workers build them, writes the index.

A shard is a pure function of its manifest rows and the configuration. Both are recorded in it, so that an interrupted
run can recognize finished shards and continue.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cmd_extract.decode.video import ExtractedVideo, extract_video
from cmd_extract.errors import FailureLimitError, RunError, VideoError, run_error
from cmd_extract.manifest.records import resolve_path
from cmd_extract.run.containment import ContainedExtractor, Extract
from cmd_extract.run.division import plan_shards
from cmd_extract.run.finished import FinishedShard, describe_shard, extracted_rows
from cmd_extract.run.index import remove_index, write_failures, write_index
from cmd_extract.run.job import RunJob
from cmd_extract.run.journal import WorkerJournal, count_progress, read_failures
from cmd_extract.run.plan import Planned, ShardPlan, Share, count_rows
from cmd_extract.run.plan_file import save_plan
from cmd_extract.run.progress import watch_journals
from cmd_extract.run.record import (
    RunIdentity,
    RunSummary,
    add_rows,
    check_folder,
    claim_folder,
    write_record,
)
from cmd_extract.run.state import OutputState, read_state
from cmd_extract.run.task_log import ShardLog, TaskLog
from cmd_extract.run.workers import build_locally
from cmd_extract.schema import VideoRecord
from cmd_extract.shard.writer import ShardWriter
from cmd_extract.sources.access import require_packages
from cmd_extract.system.files import remove, remove_leftovers, scratch_folder


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """Builds shards in a worker process; can be pickled.

    Attributes:
        job: settings of the run.
        scratch: the run's folder for temporary files.
        max_failures: maximum number of videos that may fail in this run; None for no limit.
        extract: extracts one video, in a separate process.
    """

    job: RunJob
    scratch: Path
    max_failures: int | None
    extract: Extract

    def __call__(self, plan: ShardPlan) -> FinishedShard:
        """Extract the videos of one shard and write it.

        Raises:
            FailureLimitError: too many videos failed.
            RunError: the output or scratch folder cannot be written, a process cannot be started, or a video fails that
                the existing shard has, which then is kept.
        """
        job, folder = self.job, self.scratch / f"{plan.name}.videos"
        journal, before = WorkerJournal(self.scratch), extracted_rows(plan, self.job)
        try:
            folder.mkdir()
            writer = ShardWriter(
                job.out / plan.name,
                workdir=folder,
                config=job.config,
                described=job.described,
                software=job.software,
                rows_hash=plan.rows_hash,
            )
            records = plan.read_records()
            require_packages([resolve_path(record, job.root) for record in records])
            with ContainedExtractor(job.config, job.binary, job.limits, self.extract) as extractor:
                for record in records:
                    failed = self._add_record(record, folder, extractor, writer, journal)
                    if failed and record.row in before:
                        raise RunError(
                            f"{job.out / plan.name}: kept, because it has the video {record.video_id!r}, which cannot "
                            f"be extracted again ({failed}); make its source readable and run the same command again, "
                            "or remove the shard to extract without it"
                        )
            # An existing index may describe the shard that is replaced now.
            remove_index(job.out)
            return describe_shard(job.out / plan.name, writer.finish())
        except OSError as error:
            raise run_error(error, " or ".join(dict.fromkeys((str(job.out), str(job.scratch))))) from None
        finally:
            remove(folder)

    def _add_record(
        self,
        record: VideoRecord,
        folder: Path,
        extractor: ContainedExtractor[ExtractedVideo],
        writer: ShardWriter,
        journal: WorkerJournal,
    ) -> VideoError | None:
        """Add one video or one failure to the shard; return the failure."""
        # Each video has its own folder, because a killed process may keep writing for a moment.
        workdir = folder / str(record.row)
        workdir.mkdir()
        try:
            video = extractor.extract(resolve_path(record, self.job.root), workdir)
            writer.add_video(record, video)
            journal.add_video(video.frame_count)
            return None
        except VideoError as error:
            writer.add_failure(record, error)
            journal.add_failure(record, error)
            if self.max_failures is not None and (failed := count_progress(self.scratch).failures) > self.max_failures:
                raise FailureLimitError(failed) from None
            return error
        finally:
            remove(workdir)


Backend = Callable[[ShardWork, Sequence[ShardPlan]], Iterator[FinishedShard]]
"""Builds shards and yields them as they are finished, in any order."""


def run_extraction(
    planned: Planned,
    job: RunJob,
    *,
    workers: int,
    max_failures: int | None = None,
    extract: Extract = extract_video,
    redo: frozenset[str] = frozenset(),
    backend: Backend | None = None,
    retry_stages: frozenset[str] = frozenset(),
    on_finished: Callable[[FinishedShard], None] = lambda shard: None,
) -> RunSummary:
    """Extract the videos of a manifest into ``job.out``, continuing earlier runs.

    Args:
        planned: all shards, see ``plan_run``.
        job: settings of the run.
        workers: number of processes.
        max_failures: maximum number of rows that may fail, over all runs; None for no limit.
        extract: extracts one video, in a separate process.
        redo: names of shards to build again even if they look finished. The old file stays until the new one is
            complete.
        backend: builds the shards; None for ``workers`` processes on this machine.
        retry_stages: shards with failures of these stages are built again in the same way.
        on_finished: called with each shard that this run has built, as soon as it is logged.

    Raises:
        ShardError: the folder contains an extraction of another manifest or configuration, or sources have changed.
        RunError: the folder cannot be written, or a process cannot be started.
        FailureLimitError: too many videos failed; finished shards and ``failures.csv`` are kept.
    """
    start = time.monotonic()
    identity, planned = prepare_folders(job, planned)
    plans = planned.plans
    with contextlib.closing(ShardLog(job.out)) as log:
        state = read_state(plans, job, redo=redo, retry_stages=retry_stages, log=log)
        state.check_sources()
        add_rows(job, identity)
        backend = backend or partial(build_locally, workers)
        built = _build_shards(state, backend, extract, max_failures, planned.rows, on_finished)
        check_folder(job, identity)  # another run may have added rows
        summary = RunSummary(
            **write_index(state, built, log),
            shards=len(plans),
            new_videos=sum(shard.written.videos for shard in built.values()),
            new_frames=sum(shard.written.frames for shard in built.values()),
            seconds=time.monotonic() - start,
        )
    write_record(job, identity, summary)
    return summary


def _build_shards(
    state: OutputState,
    backend: Backend,
    extract: Extract,
    max_failures: int | None,
    total: int,
    on_finished: Callable[[FinishedShard], None],
) -> dict[str, FinishedShard]:
    """Build the missing shards and log each of them; ``total`` is the number of manifest rows."""
    job, failed_before = state.job, state.failures
    remaining = None if max_failures is None else max_failures - len(failed_before)
    try:
        with scratch_folder(job.scratch) as scratch:
            try:
                if remaining is not None and remaining < 0:
                    raise FailureLimitError(len(failed_before))
                work = ShardWork(job=job, scratch=scratch, max_failures=remaining, extract=extract)
                if not state.todo:
                    return {}
                with (
                    TaskLog(job.out, Share(task=0, num_tasks=1)) as log,
                    watch_journals(scratch, count_rows(state.todo), count_rows(state.done)),
                ):
                    built = {}
                    for shard in backend(work, state.todo):
                        built[shard.name] = log.add(shard)
                        on_finished(shard)
                    return built
            except FailureLimitError:
                failures = sorted(failed_before + read_failures(scratch))
                if state.todo:
                    remove_index(job.out)  # it does not match the table, whether or not a shard was replaced
                write_failures(job.out, failures)
                raise FailureLimitError(len(failures), total) from None
    finally:
        # An error in one worker kills the others, perhaps in the middle of a shard.
        for folder in {job.out, job.scratch}:
            remove_leftovers(folder)


def prepare_folders(job: RunJob, planned: Planned) -> tuple[RunIdentity, Planned]:
    """Create the output and scratch folders, record the run, and remove leftovers of killed processes.

    Returns:
        The identity of the run, and the shards: those of another run that has planned the same rows, if the sources
        have changed in between and it was faster.

    Raises:
        ShardError: the output folder contains another extraction.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    job.scratch.mkdir(parents=True, exist_ok=True)
    identity = RunIdentity.of(job, planned)
    recorded = claim_folder(job, identity)
    if any(own.sizes != other.sizes for own, other in zip(planned.parts, recorded.parts, strict=False)):
        planned = plan_shards(planned.plans.source, recorded.parts, planned.limits)
        identity = RunIdentity.of(job, planned)
    save_plan(job.out, planned)
    for folder in {job.out, job.scratch}:
        remove_leftovers(folder)
    return identity, planned
