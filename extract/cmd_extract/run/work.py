"""The work of a process on one shard: claims it, extracts its videos, writes it.

A shard is a pure function of its manifest rows and the configuration. Both are recorded in it, so that an interrupted
run can recognize finished shards and continue.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmd_extract.decode.video import ExtractedVideo
from cmd_extract.errors import FailureLimitError, RunError, VideoError, run_error
from cmd_extract.manifest.records import resolve_path
from cmd_extract.run.containment import ContainedExtractor, Extract
from cmd_extract.run.finished import FinishedShard, describe_shard, extracted_rows, file_stamp, is_finished
from cmd_extract.run.index import remove_index
from cmd_extract.run.job import RunJob
from cmd_extract.run.journal import Counts, WorkerJournal, count_progress
from cmd_extract.run.plan import ShardPlan
from cmd_extract.schema import VideoRecord
from cmd_extract.shard.writer import ShardWriter
from cmd_extract.sources.access import require_packages
from cmd_extract.system.claims import Claims
from cmd_extract.system.files import remove


@dataclass(frozen=True, kw_only=True)
class FailureLimit:
    """How many videos may fail.

    Attributes:
        count: maximum number of failures in the share of a task; None for no limit.
        rows: number of manifest rows of the share.
        failures, videos: number of failures in its finished shards, and of their rows.
    """

    count: int | None = None
    rows: int = 1
    failures: int = 0
    videos: int = 0

    def is_exceeded(self, now: Counts) -> bool:
        """Return whether too many have failed, with those of this run.

        A process that has extracted more than its share, because it builds shards of other tasks, may have
        proportionally more failures.
        """
        if self.count is None:
            return False
        return self.failures + now.failures > self.count * max(1.0, (self.videos + now.videos) / self.rows)


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """Builds shards in a worker process; can be pickled.

    Attributes:
        job: settings of the run.
        scratch: the run's folder for temporary files.
        extract: extracts one video, in a separate process.
        limit: how many videos may fail.
        claims: claims in the output folder; None if no other process is asked.
    """

    job: RunJob
    scratch: Path
    extract: Extract
    limit: FailureLimit
    claims: Claims | None = None

    def __call__(self, plan: ShardPlan) -> FinishedShard | None:
        """Build a shard, unless another process is building it or has built it; in that case, return None.

        Raises: see ``build``.
        """
        if self.claims is None:
            return self.build(plan)
        if self.is_finished(plan):
            return None
        try:
            with self.claims.hold(plan.name) as acquired:
                return self.build(plan) if acquired and not self.is_finished(plan) else None
        except OSError as error:
            raise run_error(error, str(self.claims.folder)) from None

    def is_finished(self, plan: ShardPlan) -> bool:
        """Return whether a shard exists that need not be replaced."""
        stamp = file_stamp(str(self.job.out), plan.name)
        return stamp is not None and stamp != plan.replaces and is_finished(plan, self.job)

    def build(self, plan: ShardPlan) -> FinishedShard | None:
        """Extract the videos of one shard and write it, unless another process with claims has done so meanwhile.

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
            exists = (job.out / plan.name).exists()
            if self.claims is not None and self.is_finished(plan):
                return None  # taken over by another process while this one did not respond
            if exists:  # and an index may describe it
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
            if self.limit.is_exceeded(counts := count_progress(self.scratch)):
                raise FailureLimitError(counts.failures) from None
            return error
        finally:
            remove(workdir)


Backend = Callable[[ShardWork, Sequence[ShardPlan]], Generator[FinishedShard | None, None, None]]
"""Builds shards and yields them as they are finished, in any order; None for those that others are building."""
