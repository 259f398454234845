"""Counts of the samples that each rule for awkward videos concerned, so that nothing happens silently."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from cmd_train.data.sampling import SamplePlan, SamplingConfig, fitting_stride


@dataclass(frozen=True, kw_only=True)
class SamplingReport:
    """How many samples each rule for awkward videos concerned. Reports add up with ``+``.

    Attributes:
        samples: samples counted.
        stride_shrunk: samples whose clip has a lower stride than configured.
        clip_padded: samples whose clip repeats the last frame.
        motion_padded: samples whose future motion is cut off by the video's end, wholly or in part.
        motion_missing: samples of these that have no frame of future motion at all.
        short_of_negatives: samples with fewer temporal negatives than configured.
        negatives_missing: temporal negatives (not samples) that had no room.
        keyframe_outside: samples whose keyframe lies farther from the clip than the margin.
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
    def of_plans(cls, plans: Iterable[SamplePlan]) -> SamplingReport:
        """Count some plans."""
        return sum((_report_of(plan) for plan in plans), cls())

    @classmethod
    def of_evaluation(cls, frame_counts: Iterable[int], config: SamplingConfig) -> SamplingReport:
        """Count videos by what ``evaluation_clips`` does to them."""
        report = cls()
        for count in frame_counts:
            shrunk = fitting_stride(count, config, 0) < config.stride
            report += cls(samples=1, stride_shrunk=int(shrunk), clip_padded=int(count < config.clip_frames))
        return report

    def text(self) -> str:
        """One line per rule, for people."""
        lines = [
            (self.stride_shrunk, "the video is short: the clip's stride was lowered"),
            (self.clip_padded, "the video is shorter than a clip at stride 1: its last frame was repeated"),
            (self.motion_padded, "the future motion ends behind the video: what is missing was marked invalid"),
            (self.motion_missing, "no future motion at all (counted above as well): no motion loss"),
            (self.short_of_negatives, f"too few temporal negatives fit ({self.negatives_missing} windows missing)"),
            (self.keyframe_outside, "no keyframe within the margin: the nearest one was taken"),
        ]
        shares = (f"  {count} ({count / max(self.samples, 1):.1%}): {rule}" for count, rule in lines)
        return "\n".join([f"{self.samples} samples, of which", *shares])


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
