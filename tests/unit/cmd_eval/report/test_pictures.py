from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cmd_eval.report.pictures import choose_videos, frame_with_arrows, jpeg_picture, most_moving_frame
from cmd_extract.schema import MotionGrid, VideoEntry
from cmd_extract.shard.drawing import ARROW_SCALE

ENTRY = VideoEntry(
    row=0,
    video_id="a",
    label="",
    group="",
    splits={},
    frame_count=24,
    fps=25.0,
    source_width=64,
    source_height=48,
    codec="h264",
    fingerprint="f",
    keyframe_indices=(0, 12),
    shard=0,
    position=0,
)


def motion(frames: int = 1) -> MotionGrid:
    return MotionGrid(grid_quarter_px=np.zeros((frames, 2, 6, 8), np.int16), valid=np.ones((frames, 6, 8), np.bool_))


def test_arrows_point_where_the_content_moves() -> None:
    still = motion()
    gray = Image.new("RGB", (64, 48), (128, 128, 128))
    plain = np.asarray(frame_with_arrows(gray, still, 8))
    assert plain.shape == (96, 128, 3)
    assert (plain == 128).all(), "no arrows without motion"
    moving = motion()
    moving.grid_quarter_px[0, 0, 2, 2] = 4 * 7  # 7 pixels to the right in the cell around (20, 20)
    drawn = np.asarray(frame_with_arrows(gray, moving, 8))
    rows, columns = np.nonzero((drawn != 128).any(axis=2))
    # The frame is enlarged by a factor of 2.
    assert abs(columns.min() - 2 * 20) <= 3
    assert abs(columns.max() - 2 * (20 + 7 * ARROW_SCALE)) <= 3
    assert abs(rows.mean() - 2 * 20) <= 1.5
    moving.valid[:] = False
    assert (np.asarray(frame_with_arrows(gray, moving, 8)) == 128).all(), "cells without a vector have no arrow"


def test_the_frame_with_the_most_motion_counts_valid_cells_only() -> None:
    grid = motion(4)
    grid.grid_quarter_px[1, 1] = 8
    grid.grid_quarter_px[2, 0] = 99
    grid.valid[2] = False
    grid.grid_quarter_px[3, 0, :3] = 8
    assert most_moving_frame(grid) == 1


def test_pictures_are_data_uris() -> None:
    picture = jpeg_picture(Image.new("RGB", (30, 20), "red"), "a red one")
    head, _, body = picture.uri.partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(body))).size == (picture.width, picture.height) == (30, 20)


def entry(name: str, label: str, group: str) -> VideoEntry:
    return replace(ENTRY, video_id=name, label=label, group=group)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(2, ["u1", "w1"]), (3, ["u1", "v2", "w1"]), (4, ["u1", "v2", "w1", "x"]), (9, ["u1", "v2", "w1", "x", "v1"])],
)
def test_videos_are_chosen_from_many_labels_and_groups(count: int, expected: list[str]) -> None:
    videos = [
        entry("x", "", "g1"),
        entry("v1", "v", "g1"),
        entry("v2", "v", "g2"),
        entry("u1", "u", "g1"),
        entry("w1", "w", "g1"),
    ]
    assert [video.video_id for video in choose_videos(videos, count)] == expected
