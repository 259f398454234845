"""Colour histograms of whole videos, without any training: what a scene's colours alone tell.

Shape legend: V videos, N frames of each, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cmd_eval.features.handcrafted import hand_made_features
from cmd_eval.features.store import COLOR_HISTOGRAM, Features
from cmd_extract.shard.reader import ShardSet
from cmd_train.data.dataset import EvalDataset
from cmd_train.data.sampling import SamplingConfig

FRAMES = 16
"""Frames of a video, at equal spacing; of a shorter one some count twice."""

BITS = 3
"""Each of red, green and blue is cut into 2 ** BITS equal ranges."""


def describe_colors(frames_u8_NHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The square root of the joint histogram of red, green and blue, averaged over frames.

    Of the root the cosine similarity is the Bhattacharyya coefficient of two histograms, the usual measure of how alike
    they are (Swain and Ballard 1991 introduced joint histograms, with another measure).

    Args:
        frames_u8_NHWC: RGB, (N, H, W, 3), at least one pixel.

    Returns:
        (512,) values, their squares sum up to 1; red changes slowest.
    """
    level = frames_u8_NHWC.reshape(-1, 3).astype(np.int64) >> (8 - BITS)
    number = (level[:, 0] << 2 * BITS) | (level[:, 1] << BITS) | level[:, 2]
    # Frames of one size: the mean of their histograms is the histogram of all their pixels.
    count = np.bincount(number, minlength=1 << 3 * BITS)
    root: NDArray[np.float64] = np.sqrt(count / count.sum())
    return root


def describe_videos(shards: ShardSet, command: str, progress: Callable[[int, int], None]) -> Features:
    """Colour histograms of all videos of a shard set, (V, 512).

    Args:
        shards: the videos.
        command: recorded as what made them.
        progress: called with (videos done, all videos).

    Raises:
        RuntimeError: a frame is damaged.
    """
    frames = EvalDataset(shards, shards.videos, SamplingConfig(clip_frames=1, stride=1), FRAMES)
    described = (describe_colors(frames[number].clips_u8[:, 0]) for number in range(len(frames)))
    return hand_made_features(COLOR_HISTOGRAM, described, shards, command, progress)
