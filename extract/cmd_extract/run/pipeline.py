"""Runs an extraction: plans shards, lets joblib spread them over processes, writes the index.

A shard is a pure function of its manifest rows and the configuration. Finished shards are recognised by what they say
of both, so that a run that was stopped continues where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cmd_extract.decode.video import extract_video
from cmd_extract.errors import FailureLimitError, OutputError, ShardError, VideoError
from cmd_extract.manifest.records import resolve_path
from cmd_extract.manifest.table import summarise
from cmd_extract.run.containment import ContainedExtractor, Extract
from cmd_extract.run.index import (
    RunSummary,
    check_sources,
    claim_folder,
    failures_of,
    is_finished,
    write_failures,
    write_index,
    write_run_record,
)
from cmd_extract.run.job import RunJob
from cmd_extract.run.journal import ShardJournal, count_failures, read_failures
from cmd_extract.run.plan import ShardPlan, count_rows, plan_shards
from cmd_extract.run.progress import watch_journals
from cmd_extract.run.workers import make_locally
from cmd_extract.schema import FAILURES_NAME, VideoRecord
from cmd_extract.shard.writer import ShardWriter, WrittenShard
from cmd_extract.system.files import remove, remove_leftovers, scratch_folder


def extract_shard(plan: ShardPlan, job: RunJob, scratch: Path, may_fail: int | None, extract: Extract) -> WrittenShard:
    """Extracts the videos of one shard and writes it. Runs in a worker process.

    Args:
        plan: the shard's rows.
        job: folders, configuration, limits.
        scratch: the run's folder for temporary files.
        may_fail: how many videos of this run may fail; None for any number.
        extract: what extracts one video, in a process of its own.

    Raises:
        FailureLimitError: more failed.
        OutputError: the output or scratch folder cannot be written.
    """
    journal = ShardJournal(scratch, plan.name)
    try:
        folder = scratch / f"{plan.name}.videos"
        folder.mkdir()
        writer = ShardWriter(
            job.out / plan.name,
            workdir=folder,
            config=job.config,
            described=job.described,
            software=job.software,
            rows_hash=plan.rows_hash,
        )
        with ContainedExtractor(job.config, job.binary, job.limits, extract) as extractor:
            for record in plan.records:
                fine = _extract_record(record, job, folder, extractor, writer, journal)
                if not fine and may_fail is not None and count_failures(scratch) > may_fail:
                    raise FailureLimitError(f"more than {may_fail} videos failed")
        return writer.finish()
    except OSError as error:
        raise OutputError(f"cannot write in {job.out} or {job.scratch}: {error.strerror or error}") from None
    finally:
        remove(scratch / f"{plan.name}.videos")


def _extract_record(
    record: VideoRecord,
    job: RunJob,
    folder: Path,
    extractor: ContainedExtractor,
    writer: ShardWriter,
    journal: ShardJournal,
) -> bool:
    """Adds one video or one failure to the shard; tells which."""
    # Not one name for all: a process that was killed may still be writing into its folder for a moment.
    workdir = folder / str(record.row)
    workdir.mkdir()
    try:
        video = extractor.extract(resolve_path(record, job.root), workdir)
        writer.add_video(record, video)
        journal.add_video(video.frame_count)
        return True
    except VideoError as error:
        writer.add_failure(record, error)
        journal.add_failure(record, error)
        return False
    finally:
        remove(workdir)


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """What ``extract_shard`` needs beside the shard's rows; can be pickled.

    Attributes:
        job, scratch, may_fail, extract: see there.
    """

    job: RunJob
    scratch: Path
    may_fail: int | None
    extract: Extract

    def __call__(self, plan: ShardPlan) -> WrittenShard:
        """Makes a shard."""
        return extract_shard(plan, self.job, self.scratch, self.may_fail, self.extract)


Spread = Callable[[ShardWork, Sequence[ShardPlan]], Iterator[WrittenShard]]
"""Has shards made, somewhere, and hands them over as they are finished."""


def run_extraction(
    records: Sequence[VideoRecord],
    job: RunJob,
    *,
    workers: int,
    videos_per_shard: int | None = None,
    max_failures: int | None = None,
    extract: Extract = extract_video,
    redo: frozenset[str] = frozenset(),
    spread: Spread | None = None,
    retry_stages: frozenset[str] = frozenset(),
) -> RunSummary:
    """Extracts a manifest into ``job.out``, continuing what an earlier run has left.

    Args:
        records: all manifest rows.
        job: folders, configuration, limits.
        workers: processes.
        videos_per_shard: see ``plan_shards``.
        max_failures: how many of all rows may fail; None for any number.
        extract: what extracts one video, in a process of its own.
        redo: names of shards to make again even if they look finished; each stays until its successor is whole.
        spread: where the shards are made; None for ``workers`` processes of this machine.
        retry_stages: shards with a failure of these stages are made again likewise.

    Raises:
        ShardError: the folder holds an extraction of another manifest or configuration.
        OutputError: the folder cannot be written.
        FailureLimitError: too many videos failed; finished shards and ``failures.csv`` stay.
    """
    start = time.monotonic()
    plans = plan_shards(records, videos_per_shard)
    prepare_folders(job, records, plans)
    done, todo = divide_work(plans, job, redo, retry_stages)
    failed_before = [row for plan in done for row in failures_of(plan, job)]
    may_fail = None if max_failures is None else max_failures - len(failed_before)
    try:
        with scratch_folder(job.scratch) as scratch:
            try:
                if may_fail is not None and may_fail < 0:
                    raise FailureLimitError(f"{len(failed_before)} videos have failed")
                work = ShardWork(job=job, scratch=scratch, may_fail=may_fail, extract=extract)
                with watch_journals(scratch, count_rows(todo), count_rows(done)):
                    written = list((spread or partial(make_locally, workers))(work, todo))
            except FailureLimitError:
                write_failures(job.out / FAILURES_NAME, sorted(failed_before + read_failures(scratch)))
                raise
    finally:
        # An error in one worker ends the others wherever they are, perhaps in the middle of a shard.
        for folder in {job.out, job.scratch}:
            remove_leftovers(folder)
    totals = write_index(plans, job, {w.name: w for w in written})["totals"]
    videos, frames = sum(w.videos for w in written), sum(w.frames for w in written)
    seconds = time.monotonic() - start
    summary = RunSummary(**totals, shards=len(plans), new_videos=videos, new_frames=frames, seconds=seconds)
    write_run_record(job, records, plans, summary)
    return summary


def prepare_folders(job: RunJob, records: Sequence[VideoRecord], plans: Sequence[ShardPlan]) -> None:
    """Makes and claims the output folder, and clears it of what dead processes have left."""
    job.out.mkdir(parents=True, exist_ok=True)
    job.scratch.mkdir(parents=True, exist_ok=True)
    claim_folder(job, records, plans)
    for folder in {job.out, job.scratch}:
        remove_leftovers(folder)


def divide_work(
    plans: Sequence[ShardPlan],
    job: RunJob,
    redo: frozenset[str] = frozenset(),
    retry_stages: frozenset[str] = frozenset(),
) -> tuple[list[ShardPlan], list[ShardPlan]]:
    """Which shards are finished, and which are to be made.

    Raises:
        ShardError: the sources of finished ones have changed.
    """
    done = [plan for plan in plans if plan.name not in redo and _is_settled(plan, job, retry_stages)]
    done_numbers = {plan.number for plan in done}
    todo = [plan for plan in plans if plan.number not in done_numbers]
    changed = [text for plan in done for text in check_sources(plan, job)]
    if changed:
        raise ShardError(
            f"{job.out}: sources are not what they were: {summarise(changed, 'file')}. Nothing was changed; "
            f"`cmd-extract verify {job.out} --repair` extracts them again, or choose another folder"
        )
    return done, todo


def _is_settled(plan: ShardPlan, job: RunJob, retry_stages: frozenset[str]) -> bool:
    """Whether a shard is finished and holds no failure that is to be tried again."""
    return is_finished(plan, job) and retry_stages.isdisjoint(stage for _, _, stage, _ in failures_of(plan, job))
