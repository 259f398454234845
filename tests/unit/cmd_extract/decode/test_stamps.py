"""The rule for time stamps, on synthetic stamps."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from cmd_extract.decode.stamps import (
    RESTART_FRAMES,
    FrameTimes,
    StampReader,
    constant_rate_times,
    increasing_ticks,
    read_printed_stamps,
)
from cmd_extract.errors import VideoError

MILLISECONDS = Fraction(1, 1000)


def ticks(stamps: list[int], *, may_jump: bool = False, base: Fraction = MILLISECONDS) -> tuple[list[int], int, int]:
    times = increasing_ticks(np.array(stamps, np.int64), base, may_jump=may_jump)
    assert (np.diff(times.ticks) > 0).all()
    return times.ticks.tolist(), times.moved, times.closed


def least_steps(stamps: list[int]) -> list[int]:
    times = [0]
    for stamp in stamps[1:]:
        times.append(max(stamp - stamps[0], times[-1] + 1))
    return times


@pytest.mark.parametrize("start", [0, -400, 1 << 33])
def test_increasing_stamps_are_kept_exactly(start: int) -> None:
    stamps = [0, 33, 34, 100, 133, 900_000, 900_001]
    assert ticks([start + stamp for stamp in stamps]) == (stamps, 0, 0)
    assert ticks([start]) == ([0], 0, 0)


@pytest.mark.parametrize(
    "stamps",
    [
        [0, 0, 40, 40, 80],
        [0, 0, 0, 0, 1, 2, 40],
        [0, 40, 30, 80, 120],
        [0, 40, 30, 20, 10, 200],
        [*range(0, 400, 40), 5, *range(400, 800, 40)],
        [7] * 30,
    ],
)
def test_equal_and_backward_stamps_are_moved_by_the_least_step(stamps: list[int]) -> None:
    found, moved, closed = ticks(stamps)
    expected = least_steps(stamps)
    assert found == expected
    assert moved == sum(time != stamp - stamps[0] for time, stamp in zip(expected, stamps, strict=True))
    assert closed == 0


@pytest.mark.parametrize("may_jump", [False, True])
@pytest.mark.parametrize("second", [0, 500, -5_000_000])
def test_clock_that_starts_again_continues_after_one_interval(second: int, may_jump: bool) -> None:
    part = list(range(0, 800, 40))
    stamps = part + [second + stamp for stamp in part]
    if second == 500:  # the parts overlap by 7 frames, which the clock catches up with
        assert ticks(stamps, may_jump=may_jump)[2] == 0
    else:
        assert ticks(stamps, may_jump=may_jump) == (list(range(0, 1600, 40)), 0, 1)
    assert ticks(part + part + part)[0] == list(range(0, 2400, 40))


@pytest.mark.parametrize("step", [1, 40])
def test_the_interval_after_a_restart_is_the_median_of_the_positive_steps(step: int) -> None:
    assert ticks([step * n for n in range(20)] * 2) == ([step * n for n in range(40)], 0, 1)
    # Equal stamps do not shorten it.
    equal = [step * n for n in range(20) for _ in range(4)]
    before = least_steps(equal)
    assert ticks([*equal, *range(0, 20 * step, step)])[0] == [*before, *(before[-1] + step * n for n in range(1, 21))]


def test_a_clock_may_start_again_at_the_second_frame() -> None:
    assert ticks([1000, *range(0, 800, 40)]) == (list(range(0, 840, 40)), 0, 1)
    assert ticks([1000, *[0] * 10]) == (list(range(11)), 9, 1), "an interval of one tick where no stamp increases"


def test_clock_behind_for_a_few_frames_has_not_started_again() -> None:
    part = list(range(0, 800, 40))
    for behind, closed in ((RESTART_FRAMES, 0), (RESTART_FRAMES + 1, 1)):
        late = [stamp - 790 for stamp in range(800, 800 + behind)]
        assert ticks([*part, *late, *range(1200, 2000, 40)])[2] == closed
        assert ticks([*part, *late])[2] == closed, "at the end of the video"
        # A clock that reaches the latest time so far without exceeding it is still behind.
        assert ticks([*part, *late[:-1], part[-1], *range(1200, 2000, 40)])[2] == closed


def test_gaps_are_closed_only_where_the_clock_may_jump() -> None:
    stamps = [*range(0, 400, 40), *range(60_000, 60_400, 40)]
    assert ticks(stamps) == (stamps, 0, 0)
    assert ticks(stamps, may_jump=True) == (list(range(0, 800, 40)), 0, 1)
    short = [*range(0, 400, 40), *range(9_000, 9_400, 40)]
    assert ticks(short, may_jump=True) == (short, 0, 0)
    # A single wrong stamp costs one interval, nothing more.
    glitch = [*range(0, 800, 40), 9_000_000, *range(840, 2000, 40)]
    assert ticks(glitch, may_jump=True) == (list(range(0, 2000, 40)), 0, 2)
    # Steps of exactly ten seconds are kept, however long the video.
    long = [0, 0, *range(10_000, 60_000, 10_000)]
    assert ticks(long, may_jump=True) == ([0, 1, *range(10_000, 60_000, 10_000)], 1, 0)
    assert ticks([0, 10_000, 20_001, 20_041], may_jump=True)[2] == 1


def test_seconds_are_exact_and_repairs_are_noted() -> None:
    times = FrameTimes(ticks=np.arange(4), time_base=Fraction(1001, 30000))
    assert times.seconds.tolist() == [float(Fraction(n * 1001, 30000)) for n in range(4)]
    assert times.note == ""
    assert "3" in FrameTimes(ticks=np.array([0]), time_base=MILLISECONDS, moved=3).note
    with pytest.raises(ValueError, match="int64"):
        FrameTimes(ticks=np.array([0.0]), time_base=MILLISECONDS)


def test_intervals_are_exact_at_their_borders() -> None:
    times = FrameTimes(ticks=np.array([0, 299, 300, 599, 600, 3_000_000]), time_base=Fraction(1, 300))
    assert times.intervals(range(6), Fraction(1)) == [0, 0, 1, 1, 2, 10_000]
    assert times.intervals([2, 1], Fraction(1, 3)) == [3, 2]
    times = FrameTimes(ticks=np.array([29, 30, 59, 60]), time_base=Fraction(1001, 30000))
    assert times.intervals(range(4), Fraction(1)) == [0, 1, 1, 2]


def test_constant_rate_counts_jumps_of_the_source() -> None:
    stamps = np.array([0, 40, 80, 600_080, 600_120, 90, 130], np.int64)
    times = constant_rate_times(50, Fraction(25), stamps, MILLISECONDS)
    np.testing.assert_allclose(times.seconds, np.arange(50) / 25)
    assert (times.moved, times.closed) == (0, 2)
    # Ten seconds forward or one second back is no jump, one tick more is.
    for steps, closed in (([10_000, -1000, 40, -40], 0), ([10_001, -1001, 40, -40], 2)):
        stamps = np.cumsum([0, *steps])
        assert constant_rate_times(5, Fraction(25), stamps, MILLISECONDS).closed == closed


def test_reader_prefers_the_stamps_that_increase() -> None:
    reader = StampReader(1)
    # Presentation stamps of packed B-frames go back; the decoding stamps do not.
    frames = [(1, 0), (3, 1), (3, 2), (2, 3), (5, 4), (4, 5), (7, 6)]
    found = [reader(pts, dts, 1) for pts, dts in frames]
    assert found == [(1, True), (3, True), (2, True), (3, True), (4, True), (5, True), (6, True)]


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([(10, 0), (20, 0), (30, 0), (25, 0)], [10, 20, 30, 25]),  # decoding stamps stand still
        ([(10, None), (50, 20), (90, 60)], [10, 50, 90]),  # the first frame has one kind only
        ([(None, 10), (50, 20), (90, 60)], [10, 50, 90]),
        ([(0, 0), (None, 50), (30, 60)], [0, 50, 60]),  # 30 goes back behind 50
        ([(0, 0), (50, None), (60, 30)], [0, 50, 60]),
        ([(0, 0), (50, None), (40, 45), (41, 46), (42, 50)], [0, 50, 40, 41, 42]),  # as many faults in both kinds
    ],
)
def test_reader_counts_steps_back_of_each_kind_of_stamp(
    frames: list[tuple[int | None, int | None]], expected: list[int]
) -> None:
    reader = StampReader(1)
    assert [reader(pts, dts, 1) for pts, dts in frames] == [(stamp, True) for stamp in expected]


@pytest.mark.parametrize(("step", "duration", "following"), [(40, 1, 40), (3, 1, 3), (2, 1, 1), (40, 2, 2), (40, 0, 7)])
def test_invented_durations_of_one_tick_are_not_used(step: int, duration: int, following: int) -> None:
    reader = StampReader(7)
    found = [reader(50, None, duration), reader(50 + step, None, duration), reader(None, None, duration)]
    assert found == [(50, True), (50 + step, True), (50 + step + following, False)]


def test_frames_without_stamps_follow_the_frame_before() -> None:
    reader = StampReader(40)
    found = [reader(None, None, 0), reader(None, None, 33), reader(None, None, 33), reader(500, 500, 0)]
    assert found == [(0, False), (40, False), (73, False), (500, True)]
    assert reader(None, None, 0) == (540, False)
    reader = StampReader(0)  # unknown
    assert [reader(None, None, 0), reader(None, None, 0)] == [(0, False), (1, False)]


def test_printed_stamps(tmp_path: Path) -> None:
    path = tmp_path / "stamps.txt"
    path.write_text(
        "frame:0    pts:-15     pts_time:-0.015\nframe=0\nframe:1    pts:NOPTS   pts_time:NOPTS\nframe=0\n"
        "frame:2    pts:8580934592 pts_time:8.58093e+06\nframe=0\n"
    )
    assert read_printed_stamps(path, MILLISECONDS, 40).tolist() == [-15, 25, 8580934592]
    with pytest.raises(VideoError, match="disagree about the time base"):
        read_printed_stamps(path, Fraction(1, 30), 1)
    path.write_text("frame:0    pts:300     pts_time:10.01\n")
    with pytest.raises(VideoError, match="disagree about the time base"):
        read_printed_stamps(path, Fraction(1, 30), 1)
    missing = "pts:NOPTS   pts_time:NOPTS\n"
    path.write_text(f"frame:0    pts:7       pts_time:0.007\nframe:1    {missing}frame:2    {missing}")
    assert read_printed_stamps(path, MILLISECONDS, 40).tolist() == [7, 47, 87]
    path.write_text("")
    assert read_printed_stamps(path, MILLISECONDS, 40).tolist() == []
