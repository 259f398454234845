"""Counts of the samples affected by each rule for short or irregular videos, so that no rule applies silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields

from cmd_train.data.sampling import SamplePlan, SamplingConfig, fitting_stride


@dataclass(frozen=True, kw_only=True)
class SamplingReport:
    """Number of samples affected by each rule for short or irregular videos. ``+`` adds reports.

    Attributes:
        samples: number of samples.
        stride_shrunk: samples whose clip has a lower stride than configured.
        clip_padded: samples whose clip repeats the last frame.
        motion_padded: samples whose future motion extends beyond the end of the video, partly or entirely.
        motion_missing: samples without any frame of future motion; included in ``motion_padded``.
        short_of_negatives: samples with fewer temporal negatives than configured.
        negatives_missing: number of temporal negatives (not samples) that did not fit.
        keyframe_outside: samples whose keyframe is farther from the clip than the margin.
    """

    samples: int = 0
    stride_shrunk: int = 0
    clip_padded: int = 0
    motion_padded: int = 0
    motion_missing: int = 0
    short_of_negatives: int = 0
    negatives_missing: int = 0
    keyframe_outside: int = 0

    def __add__(self, other: SamplingReport) -> SamplingReport:
        return SamplingReport(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @classmethod
    def from_plans(cls, plans: Iterable[SamplePlan]) -> SamplingReport:
        """Count the plans of samples."""
        return sum((_report_of(plan) for plan in plans), cls())

    @classmethod
    def from_evaluation(cls, frame_counts: Iterable[int], config: SamplingConfig) -> SamplingReport:
        """Count the rules that ``evaluation_clips`` applies to videos with the given numbers of frames."""
        report = cls()
        for count, videos in Counter(frame_counts).items():
            shrunk = fitting_stride(count, config, 0) < config.stride
            padded = count < config.clip_frames
            report += cls(samples=videos, stride_shrunk=videos * shrunk, clip_padded=videos * padded)
        return report

    def text(self) -> str:
        """Return a human-readable summary, one line per rule."""
        lines = [
            (self.stride_shrunk, "short video: stride of the clip lowered"),
            (self.clip_padded, "video shorter than a clip at stride 1: last frame repeated"),
            (self.motion_padded, "future motion extends beyond the end of the video: missing frames marked invalid"),
            (self.motion_missing, "no future motion at all (also counted above): no motion loss"),
            (self.short_of_negatives, f"too few temporal negatives fit ({self.negatives_missing} windows missing)"),
            (self.keyframe_outside, "no keyframe within the margin: nearest one used"),
        ]
        shares = (f"  {count} ({count / max(self.samples, 1):.1%}): {rule}" for count, rule in lines)
        return "\n".join([f"{self.samples} samples:", *shares])


def _report_of(plan: SamplePlan) -> SamplingReport:
    return SamplingReport(
        samples=1,
        stride_shrunk=int(plan.stride_shrunk),
        clip_padded=int(plan.clip_padded),
        motion_padded=int(plan.motion_padded),
        motion_missing=int(bool(plan.motion_windows) and not plan.window_valid[0]),
        short_of_negatives=int(plan.negatives_missing > 0),
        negatives_missing=plan.negatives_missing,
        keyframe_outside=int(plan.keyframe_outside),
    )
