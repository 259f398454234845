"""Clips of shards as a plain dataset, for a custom training loop, ``DataLoader`` or Lightning.

Shape legend: N clips, T frames, H rows, W columns, gh x gw motion cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cmd_extract.schema import ShardHeader, VideoEntry
from cmd_extract.shard.folders import folder_paths, open_folders
from cmd_extract.shard.videos import Videos
from cmd_extract.system.validation import require
from cmd_train.data.dataset import DamagedSampleError, read_frames, require_frames
from cmd_train.data.sampling import SamplingConfig, evaluation_clips, plan_clip
from cmd_train.data.selection import select_videos


class ShardItem(TypedDict, total=False):
    """Sample of a ``ShardDataset``; torch's default collation makes batches of it.

    Attributes:
        clip: (T, H, W, 3) uint8, RGB, or (N, T, H, W, 3) with ``clips=N``; or what ``transform`` returns.
        label: index into ``classes``, -1 for a video without a label.
        video: index into ``videos``.
        motion: (T, 2, gh, gw) int16 motion of the clip's frames in quarter pixels; only with ``motion=True``.
        valid: (T, gh, gw) bool, its validity.
    """

    clip: Any
    label: int
    video: int
    motion: Tensor
    valid: Tensor


class ShardDataset(Dataset[ShardItem]):
    """Clips of the videos in one or several output folders of ``cmd-extract run``; one item per video.

    It can be used by workers of any start method. Random clips are drawn with torch's random generator, which
    ``DataLoader`` seeds differently in every worker and epoch.

    Args:
        folder: the output folder, or several that were extracted with the same settings.
        split_column: split column of the manifest; None for all videos.
        part: part of that split.
        clip_frames: frames T per clip.
        stride: distance between two frames of a clip; lowered for short videos.
        clips: number N of evenly spaced clips per video, for evaluation; None for one random clip, for training.
        motion: whether to read motion too; for random clips only.
        classes: class names in the order of their numbers; None for the sorted labels of the selected videos. A test
            set needs the classes of its training set.
        transform: applied to the clip or clips, a uint8 tensor.

    Attributes:
        videos: the selected videos.
        classes: the class names.
        header: sizes of frames, keyframes and motion grids.

    Raises:
        ShardError: the folder contains no complete extraction.
        ValueError: no folder is given, the split column or its part does not exist, a setting is out of range, or the
            shards contain no small frames.
    """

    videos: Videos
    classes: tuple[str, ...]
    header: ShardHeader

    def __init__(
        self,
        folder: str | PathLike[str] | Sequence[str | PathLike[str]],
        *,
        split_column: str | None = None,
        part: str = "train",
        clip_frames: int = 16,
        stride: int = 4,
        clips: int | None = None,
        motion: bool = False,
        classes: Sequence[str] | None = None,
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        require(clips is None or clips >= 1, f"clips: must be at least 1, got {clips}")
        require(clips is None or not motion, "motion: needs random clips; remove clips")
        self._shards = open_folders(folder_paths(folder))
        self.header = self._shards.header
        require_frames(self.header)
        self.videos = select_videos(self._shards.videos, split_column, part)
        labels = self.videos.names("label").used
        self.classes = tuple(classes or labels)
        self._numbers: Mapping[str, int] = {name: number for number, name in enumerate(self.classes)}
        unknown = sorted(set(labels) - set(self.classes))
        require(not unknown, f"classes: {', '.join(unknown[:5])} of the selected videos missing")
        self._sampling = SamplingConfig(clip_frames=clip_frames, stride=stride, motion_room=False)
        self._clips, self._motion, self._transform = clips, motion, transform

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> ShardItem:
        """Read the clip or clips of a video.

        Raises:
            IndexError: there is no such video.
            DamagedSampleError: stored data of the video cannot be read.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"video {index} of a dataset of {len(self)}")
        number = index % len(self)
        video = self.videos[number]
        if self._clips is None:
            rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
            frames: Sequence[Sequence[int]] = [plan_clip(video.frame_count, self._sampling, rng).clip_frames]
        else:
            frames = evaluation_clips(video.frame_count, self._sampling, self._clips)
        clip = torch.from_numpy(self._read_clips(video, frames))
        clip = clip[0] if self._clips is None else clip
        item = ShardItem(
            clip=clip if self._transform is None else self._transform(clip),
            label=self._numbers.get(video.label, -1),
            video=number,
        )
        if self._motion:
            item["motion"], item["valid"] = map(torch.from_numpy, self._read_motion(video, frames[0]))
        return item

    def _read_clips(self, video: VideoEntry, clips: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
        size = (self.header.frame_height, self.header.frame_width, 3)
        pictures = np.empty((sum(map(len, clips)), *size), np.uint8)
        read_frames(self._shards, video, [frame for clip in clips for frame in clip], pictures)
        return pictures.reshape(len(clips), -1, *size)

    def _read_motion(self, video: VideoEntry, frames: Sequence[int]) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
        first, last = frames[0], frames[-1]
        try:
            motion = self._shards.motion(video, first, last + 1)
        except OSError as error:
            raise DamagedSampleError(
                f"video {video.video_id}: motion of frames {first} to {last} cannot be read ({error})"
            ) from error
        rows = np.array(frames) - first
        return motion.grid_quarter_px[rows], motion.valid[rows]
