"""A hand-made descriptor of a video's motion, without any training: the mark that a learned feature has to beat.

Shape legend: V videos, T frames, N time bins, gh x gw cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cmd_eval.features.handcrafted import hand_made_features
from cmd_eval.features.store import MOTION_DESCRIPTOR, Features
from cmd_extract.schema import QUARTER_PX, MotionGrid
from cmd_extract.shard.reader import ShardSet

TIME_BINS = 12
MOVING_PX = 2.0
"""A cell moves if its vector, less the camera's, is at least this long in pixels of the canonical stream a frame."""


def describe_motion(motion: MotionGrid) -> NDArray[np.float64]:
    """Where a video's motion goes and which way it takes, over its time.

    The camera's motion, the median vector of each frame, is taken out. The video is cut into 12 equal spans. Of each:
    the mean vector (dx, dy, in pixels) over its moving cells, and the centre of these cells (x, y, in shares of the
    picture) relative to the mean centre of all spans, so that it does not count where in the picture something moves.
    A span without moving cells is zero.

    Threshold, camera and centre were chosen by leaving scenes out of the training parts of a set of gestures, never by
    its tested parts.

    Args:
        motion: grids of all frames, (T, 2, gh, gw).

    Returns:
        (12 * 4,) values, time first.
    """
    vectors = without_camera(motion)
    moving = motion.valid & (np.hypot(vectors[:, 0], vectors[:, 1]) >= MOVING_PX)
    rows, columns = moving.shape[1:]
    centre_y, centre_x = np.meshgrid(
        (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij"
    )
    edges = np.linspace(0, len(motion), TIME_BINS + 1).round().astype(int)
    described = np.zeros((TIME_BINS, 4))
    seen = np.zeros(TIME_BINS, bool)
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        where = moving[start:stop]
        if where.any():
            seen[number] = True
            dx, dy = vectors[start:stop, 0][where], vectors[start:stop, 1][where]
            x, y = np.broadcast_to(centre_x, where.shape)[where], np.broadcast_to(centre_y, where.shape)[where]
            described[number] = [dx.mean(), dy.mean(), x.mean(), y.mean()]
    if seen.any():
        described[seen, 2:] -= described[seen, 2:].mean(axis=0)
    return described.ravel()


def without_camera(motion: MotionGrid) -> NDArray[np.float64]:
    """Vectors in pixels, less the median vector of each frame's valid cells, (T, 2, gh, gw)."""
    vectors = motion.grid_quarter_px.astype(np.float64) / QUARTER_PX
    for vectors_2HW, valid_HW in zip(vectors, motion.valid, strict=True):
        if valid_HW.any():
            vectors_2HW -= np.median(vectors_2HW[:, valid_HW], axis=1)[:, None, None]
    return vectors


def describe_videos(shards: ShardSet, command: str, progress: Callable[[int, int], None]) -> Features:
    """Descriptors of all videos of a shard set, (V, 48), not standardised.

    Args:
        shards: the videos.
        command: recorded as what made them.
        progress: called with (videos done, all videos).
    """
    described = (describe_motion(shards.motion(entry, 0, entry.frame_count)) for entry in shards.videos)
    return hand_made_features(MOTION_DESCRIPTOR, described, shards, command, progress)
