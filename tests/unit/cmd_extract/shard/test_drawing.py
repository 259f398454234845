from __future__ import annotations

import numpy as np
from PIL import Image

from cmd_extract.shard.drawing import ARROW_SCALE, BRIGHTEST_PX, color_wheel, direction_colors, draw_arrows


def test_direction_is_the_hue_and_speed_the_saturation() -> None:
    dx = np.array([[BRIGHTEST_PX, -2 * BRIGHTEST_PX, 0, 0, BRIGHTEST_PX / 2, 0, 9]])
    dy = np.array([[0, 0, BRIGHTEST_PX, -BRIGHTEST_PX, 0, 0, 9]])
    valid = np.array([[True] * 6 + [False]])
    expected = [
        [[255, 0, 0], [0, 255, 255], [127, 255, 0], [127, 0, 255], [255, 127, 127], [255, 255, 255], [127, 127, 127]]
    ]
    np.testing.assert_allclose(direction_colors(dx, dy, valid).astype(int), expected, atol=1)


def test_arrows_start_at_cell_centers_and_point_in_the_direction_of_motion() -> None:
    dx, dy, valid = np.zeros((6, 8)), np.zeros((6, 8)), np.ones((6, 8), np.bool_)
    image = Image.new("RGB", (64, 48), (128, 128, 128))
    draw_arrows(image, dx, dy, valid, 8)
    assert (np.asarray(image) == 128).all(), "cells without motion have no arrow"
    dx[2, 2] = 7
    dx[3, 3] = 7  # only every second row and column is drawn
    draw_arrows(image, dx, dy, ~valid, 8)
    assert (np.asarray(image) == 128).all(), "cells without a vector have no arrow"
    draw_arrows(image, dx, dy, valid, 8)
    rows, columns = np.nonzero((np.asarray(image) != 128).any(axis=2))
    assert columns.min() == 20
    assert abs(columns.max() - (20 + 7 * ARROW_SCALE)) <= 1
    assert rows.min() == 19
    assert rows.max() == 21


def test_the_color_wheel_is_transparent_outside_the_disc() -> None:
    wheel = np.asarray(color_wheel(65))
    assert wheel.shape == (65, 65, 4)
    assert wheel[0, 0, 3] == 0
    assert wheel[32, 32].tolist() == [255, 255, 255, 255], "no motion is white"
    assert wheel[32, 64].tolist() == [255, 0, 0, 255], "right is red"
