from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest

from cmd_train.data.sampling import (
    MotionWindow,
    SamplePlan,
    SamplingConfig,
    evaluation_clips,
    plan_clip,
    plan_sample,
    sample_rng,
)
from cmd_train.data.sampling_report import SamplingReport

CONFIG = SamplingConfig()


def plans(frame_count: int, count: int = 300, config: SamplingConfig = CONFIG, gop: int = 12) -> list[SamplePlan]:
    keyframes = tuple(range(0, frame_count, gop))
    return [plan_sample(frame_count, keyframes, config, sample_rng(7, 1, index)) for index in range(count)]


def test_the_window_of_the_paper_has_71_frames() -> None:
    assert CONFIG.window_span(4) == 71
    (plan,) = plans(71, 1)
    assert plan.clip_frames == tuple(range(0, 61, 4))
    assert plan.motion_windows[0] == MotionWindow(63, 8)
    flags = (plan.stride_shrunk, plan.clip_padded, plan.motion_padded, plan.negatives_missing, plan.keyframe_outside)
    assert flags == (False, False, False, 0, False)


@pytest.mark.parametrize("frame_count", [71, 72, 90, 300])
def test_long_videos_have_the_published_geometry(frame_count: int) -> None:
    for plan in plans(frame_count):
        assert plan.clip_frames == tuple(range(plan.clip_frames[0], plan.clip_frames[0] + 61, 4))
        start, valid, _ = plan.motion_windows[0]
        assert start == plan.clip_frames[-1] + 3
        assert valid == 8
        assert start + 8 <= frame_count
        assert plan.clip_frames[0] - 5 <= 12 * plan.keyframe <= plan.clip_frames[-1] + 5


def test_start_is_uniform_over_all_positions() -> None:
    starts = Counter(plan.clip_frames[0] for plan in plans(75, 2000))
    assert sorted(starts) == [0, 1, 2, 3, 4]
    assert min(starts.values()) > 320  # expected 400, standard deviation 18


@pytest.mark.parametrize(
    ("frame_count", "stride"), [(71, 4), (70, 3), (56, 3), (55, 2), (41, 2), (40, 1), (26, 1), (25, 1), (5, 1)]
)
def test_stride_is_lowered_until_the_window_fits(frame_count: int, stride: int) -> None:
    for plan in plans(frame_count, 20):
        assert plan.stride == stride
        assert plan.stride_shrunk == (stride < 4)
        assert set(np.diff(plan.clip_frames)) <= {stride, 0}


@pytest.mark.parametrize(
    ("frame_count", "clip_padded", "valid"),
    [(26, False, 8), (25, False, 7), (19, False, 1), (18, False, 0), (16, False, 0), (15, True, 0)],
)
def test_motion_beyond_the_end_is_invalid(frame_count: int, clip_padded: bool, valid: int) -> None:
    (plan,) = plans(frame_count, 1)
    assert plan.clip_padded == clip_padded
    assert plan.motion_windows[0] == MotionWindow(18, valid)
    assert plan.motion_padded == (valid < 8)
    assert plan.window_valid[0] == (valid > 0)


def test_a_clip_longer_than_the_video_repeats_the_last_frame() -> None:
    (plan,) = plans(10, 1)
    assert plan.clip_frames == (*range(10), 9, 9, 9, 9, 9, 9)
    assert plan.clip_padded
    assert plan.window_valid[0] is False
    assert plan_sample(1, (0,), CONFIG, sample_rng(0, 0, 0)).clip_frames == (0,) * 16


@pytest.mark.parametrize("frame_count", [*range(1, 40), 41, 56, 71, 87, 200])
def test_negatives_are_disjoint_and_as_many_as_fit(frame_count: int) -> None:
    for plan in plans(frame_count, 40):
        positive, *others = plan.motion_windows
        negatives = [window for window in others if window.valid_frames]
        assert len(others) == 3
        assert len(negatives) == 3 - plan.negatives_missing
        assert all(window.valid_frames == 8 and window.start + 8 <= frame_count for window in negatives)
        occupied = sorted([positive.start, *(window.start for window in negatives)])
        assert all(later - earlier >= 8 for earlier, later in pairwise(occupied))
        room = min(positive.start, frame_count) // 8 + max(frame_count - positive.start - 8, 0) // 8
        assert len(negatives) == min(3, room)
        assert plan.window_valid[1:] == (True,) * len(negatives) + (False,) * plan.negatives_missing


@pytest.mark.parametrize(
    ("frame_count", "stride", "valid"),
    [
        (75, 4, 64),
        (61, 4, 61),
        (60, 3, 64),
        (46, 3, 62),
        (45, 2, 64),
        (31, 2, 62),
        (30, 1, 64),
        (16, 1, 64),
        (10, 1, 40),
    ],
)
def test_the_window_of_a_clip_covers_the_clip(frame_count: int, stride: int, valid: int) -> None:
    """The window has 64 frames at every stride: frame i shows the share i / 64 of the clip's ``16 * stride`` frames."""
    config = SamplingConfig(motion_window="clip", temporal_negatives=0)
    starts = set()
    for plan in plans(frame_count, 200, config):
        (window,) = plan.motion_windows
        first = plan.clip_frames[0]
        starts.add(first)
        assert plan.stride == stride
        assert window.start == first
        shown = [first + i * 16 * stride // 64 for i in range(64)]
        assert (window.start + window.frames(64)).tolist() == [frame for frame in shown if frame < frame_count]
        # A clip at the very end lacks the stride - 1 frames after its last one.
        assert plan.motion_padded == (shown[-1] >= frame_count)
        if first == 0:
            assert window.valid_frames == valid
    assert starts == set(range(max(frame_count - 15 * stride, 1))), "no room is reserved after the clip"


def test_all_arrangements_of_negatives_are_equally_likely() -> None:
    config = SamplingConfig(clip_frames=2, stride=1, future_interval=0, motion_frames=2, temporal_negatives=2)
    counts = Counter(
        tuple(window.start for window in plan.motion_windows[1:])
        for plan in plans(9, 12000, config)
        if plan.motion_windows[0].start == 5
    )
    starts = [0, 1, 2, 3, 7]  # frames 0-4 precede the positive window, 7-8 follow it
    expected = {pair for pair in combinations(starts, 2) if pair[1] - pair[0] >= 2}
    assert set(counts) == expected
    assert len(expected) == 7
    for arrangement in counts.values():
        assert arrangement == pytest.approx(sum(counts.values()) / 7, rel=0.25)


def test_keyframes_are_drawn_from_the_margin_on_both_sides() -> None:
    keyframes = (0, 4, 5, 40, 76, 77, 200)

    def draw(index: int) -> SamplePlan:
        rng = sample_rng(3, 0, index)
        return plan_sample(300, keyframes, CONFIG, rng)

    for plan in map(draw, range(400)):
        first, last = plan.clip_frames[0], plan.clip_frames[-1]
        near = [number for number, frame in enumerate(keyframes) if first - 5 <= frame <= last + 5]
        assert plan.keyframe_outside == (not near)
        if near:
            assert plan.keyframe in near
        else:
            gaps = [min(abs(frame - first), abs(frame - last)) for frame in keyframes]
            assert plan.keyframe == int(np.argmin(gaps))


def test_all_near_keyframes_are_equally_likely() -> None:
    counts = Counter(
        plan_sample(71, (0, 20, 65, 66, 70), CONFIG, sample_rng(0, 0, index)).keyframe for index in range(1500)
    )
    assert set(counts) == {0, 1, 2}  # the clip is 0..60, so 65 is the last within the margin
    assert min(counts.values()) > 420


def test_a_plan_is_a_function_of_seed_epoch_and_index() -> None:
    def draw(seed: int, epoch: int, index: int) -> SamplePlan:
        return plan_sample(5000, range(0, 5000, 12), CONFIG, sample_rng(seed, epoch, index))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(*key).clip_frames[0] for key in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3)]}) == 5
    last = 2**32 - 1
    assert sample_rng(last, 0, last).random() != sample_rng(last, last, 0).random()
    for word in (-1, last + 1):
        with pytest.raises(ValueError, match=str(word)):
            sample_rng(0, word, 0)


@pytest.mark.parametrize("frame_count", [1, 15, 16, 61, 300])
@pytest.mark.parametrize("motion_room", [False, True])
def test_a_clip_alone_is_that_of_a_sample(frame_count: int, motion_room: bool) -> None:
    config = SamplingConfig(motion_room=motion_room)
    for index in range(20):
        whole = plan_sample(frame_count, (0,), config, sample_rng(2, 0, index))
        alone = plan_clip(frame_count, config, sample_rng(2, 0, index))
        nothing = {"motion_windows": (), "keyframe": None, "motion_padded": False, "negatives_missing": 0}
        assert alone == replace(whole, **nothing, keyframe_outside=False)
    with pytest.raises(ValueError, match="frame_count: must be at least 1, got 0"):
        plan_clip(0, config, sample_rng(0, 0, 0))


@pytest.mark.parametrize(
    ("frame_count", "stride", "starts"),
    [(71, 4, [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]), (151, 4, range(0, 91, 10)), (61, 4, [0] * 10), (60, 3, None)],
)
def test_evaluation_clips_cover_the_video(frame_count: int, stride: int, starts: list[int] | None) -> None:
    clips = evaluation_clips(frame_count, CONFIG)
    assert len(clips) == 10
    assert clips[0][0] == 0
    assert clips[-1][-1] == frame_count - 1
    assert all(set(np.diff(clip)) == {stride} for clip in clips)
    if starts is not None:
        assert [clip[0] for clip in clips] == list(starts)


def test_evaluation_of_tiny_videos_and_single_clips() -> None:
    assert evaluation_clips(3, CONFIG, 2) == ((0, 1, *[2] * 14),) * 2
    assert evaluation_clips(1, CONFIG, 1) == ((0,) * 16,)
    assert evaluation_clips(81, CONFIG, 1)[0][0] == 10


def test_reports_count_every_rule_and_add_up() -> None:
    # 10 frames: all short, no future motion, and only one negative fits (in the 10 frames before the positive window).
    short, long = plans(10, 3), plans(300, 2)
    report = SamplingReport.from_plans(short) + SamplingReport.from_plans(long)
    assert report == SamplingReport(
        samples=5,
        stride_shrunk=3,
        clip_padded=3,
        motion_padded=3,
        motion_missing=3,
        short_of_negatives=3,
        negatives_missing=6,
    )
    assert report == SamplingReport.from_plans(short + long)
    assert "3 (60.0%): short video" in report.text()
    far = SamplingReport.from_plans([plan_sample(300, (299,), CONFIG, sample_rng(0, 0, 2))])
    assert far.keyframe_outside == 1
    videos = SamplingReport.from_evaluation([300, 60, 15], CONFIG)
    assert (videos.samples, videos.stride_shrunk, videos.clip_padded) == (3, 2, 1)


@pytest.mark.parametrize("field", ["clip_frames", "stride", "motion_frames"])
def test_config_errors_name_field_and_value(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: must be at least 1, got 0"):
        SamplingConfig(**{field: 0})


@pytest.mark.parametrize("field", ["temporal_negatives", "keyframe_margin"])
def test_counts_that_may_be_zero(field: str) -> None:
    assert getattr(SamplingConfig(**{field: 0}), field) == 0
    with pytest.raises(ValueError, match=f"{field}: must be at least 0, got -1"):
        SamplingConfig(**{field: -1})


@pytest.mark.parametrize("frame_count", [16, 31, 40, 200])
def test_a_negative_interval_uses_the_motion_of_the_clip_itself(frame_count: int) -> None:
    config = SamplingConfig(stride=2, future_interval=-16)
    lasts = set()
    for index in range(50):
        plan = plan_sample(frame_count, (0,), config, sample_rng(0, 0, index))
        (start, valid, _), last = plan.motion_windows[0], plan.clip_frames[-1]
        assert start == last + 1 - 16
        assert valid == 8
        assert plan.clip_frames[0] <= start
        assert start + valid <= last + 1
        lasts.add(last)
    # No room is reserved after the clip.
    assert max(lasts) == frame_count - 1


def test_motion_cannot_start_before_the_clip() -> None:
    with pytest.raises(ValueError, match=r"future_interval: must be at least .* got -17"):
        SamplingConfig(future_interval=-17)
