"""Hand-crafted features of whole videos: motion-grid descriptors and color histograms.

No network is trained, but the settings of the motion descriptor were chosen with labels, see ``describe_motion``.

Shape legend: V videos, F values of a descriptor, T frames, N sampled frames, H x W pixels, gh x gw grid cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from cmd_eval.data.table import VideoTable
from cmd_eval.features.store import COLOR_HISTOGRAM, MOTION_DESCRIPTOR, Features
from cmd_eval.results.schema import Provenance
from cmd_extract.schema import QUARTER_PX, MotionGrid
from cmd_extract.shard.folders import join_paths
from cmd_extract.shard.reader import ShardSet
from cmd_train.data.dataset import EvalDataset
from cmd_train.data.sampling import SamplingConfig

TIME_BINS = 8
MOVING_PX = 1.0
"""Minimum length of the camera-compensated vector of a moving cell, in pixels of the canonical stream per frame."""
COLOR_FRAMES = 16
"""Evenly spaced frames per video for the color histogram; shorter videos repeat frames."""
COLOR_BITS = 3
"""Red, green and blue are each quantized to 2 ** COLOR_BITS equal ranges."""

Progress = Callable[[int, int], None]


def motion_grid_features(shards: ShardSet, command: str, progress: Progress) -> Features:
    """Compute the motion-grid descriptors of all videos in a shard set, (V, 16).

    Args:
        shards: the videos.
        command: command line, recorded as provenance.
        progress: called with (videos done, total videos).
    """
    descriptors = (describe_motion(shards.motion(entry, 0, entry.frame_count)) for entry in shards.videos)
    return _collect(MOTION_DESCRIPTOR, descriptors, shards, command, progress)


def color_histogram_features(shards: ShardSet, command: str, progress: Progress) -> Features:
    """Compute the color histograms of all videos in a shard set, (V, 512).

    Args:
        shards: the videos.
        command: command line, recorded as provenance.
        progress: called with (videos done, total videos).

    Raises:
        RuntimeError: a frame is damaged.
    """
    frames = EvalDataset(shards, shards.videos, SamplingConfig(clip_frames=1, stride=1), COLOR_FRAMES)
    histograms = (describe_colors(frames[number].clips_u8[:, 0]) for number in range(len(frames)))
    return _collect(COLOR_HISTOGRAM, histograms, shards, command, progress)


def describe_motion(motion: MotionGrid) -> NDArray[np.float64]:
    """Describe the direction of a video's motion over time.

    Camera motion, estimated as the median vector of each frame, is subtracted. The video is divided into 8 equal time
    bins. Each bin holds the mean vector (dx, dy, in pixels) of its moving cells; bins without moving cells are zero.

    Threshold, camera rule, centering and bins were chosen with labels among 90 variants (mean vectors or direction
    histograms, 1 to 8 bins, three thresholds, with and without camera motion) by leave-one-group-out retrieval within
    the training scenes of a gesture dataset and of the synthetic dataset, never on their test parts.

    Args:
        motion: grids of all frames, (T, 2, gh, gw).

    Returns:
        (8 * 2,) values, time first.
    """
    vectors = subtract_camera_motion(motion)
    moving = motion.valid & (np.hypot(vectors[:, 0], vectors[:, 1]) >= MOVING_PX)
    edges = np.linspace(0, len(motion), TIME_BINS + 1).round().astype(int)
    descriptor = np.zeros((TIME_BINS, 2))
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        where = moving[start:stop]
        if where.any():
            descriptor[number] = [vectors[start:stop, axis][where].mean() for axis in (0, 1)]
    return descriptor.ravel()


def subtract_camera_motion(motion: MotionGrid) -> NDArray[np.float64]:
    """Return the vectors in pixels minus the median vector of each frame's valid cells, (T, 2, gh, gw)."""
    vectors = motion.grid_quarter_px.astype(np.float64) / QUARTER_PX
    for vectors_2HW, valid_HW in zip(vectors, motion.valid, strict=True):
        if valid_HW.any():
            vectors_2HW -= np.median(vectors_2HW[:, valid_HW], axis=1)[:, None, None]
    return vectors


def describe_colors(frames_u8_NHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the element-wise square root of the joint RGB histogram, averaged over frames.

    The cosine similarity of two such vectors is the Bhattacharyya coefficient of the histograms, the usual measure of
    their similarity (Swain and Ballard 1991 introduced joint color histograms, with another measure).

    Args:
        frames_u8_NHWC: RGB, (N, H, W, 3), at least one pixel.

    Returns:
        (512,) values with unit L2 norm; red varies slowest.
    """
    level = frames_u8_NHWC.reshape(-1, 3).astype(np.int64) >> (8 - COLOR_BITS)
    number = (level[:, 0] << 2 * COLOR_BITS) | (level[:, 1] << COLOR_BITS) | level[:, 2]
    # All frames have the same size, so the mean of their histograms is the histogram of all pixels.
    count = np.bincount(number, minlength=1 << 3 * COLOR_BITS)
    root: NDArray[np.float64] = np.sqrt(count / count.sum())
    return root


def _collect(
    name: str, descriptors: Iterable[NDArray[np.float64]], shards: ShardSet, command: str, progress: Progress
) -> Features:
    """Stack the descriptors of all videos, given in the order of ``shards.videos``, as features of one clip each."""
    rows = []
    for values in descriptors:
        rows.append(values)
        progress(len(rows), len(shards.videos))
    mean_VF = np.stack(rows).astype(np.float32)
    return Features(
        videos=VideoTable.of(shards.videos),
        mean_VF=mean_VF,
        clips_VNF=mean_VF[:, None],
        provenance=Provenance(
            command=command,
            shards=join_paths(shards.folders),
            data_hash=shards.data_hash,
            features=name,
            clips=1,
        ),
    )
