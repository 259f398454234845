"""Shards as a table of videos, and the clip, keyframe and motion of any of them, decoded.

Shape legend: T frames, gh x gw grid cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmd_extract.errors import ShardError
from cmd_extract.schema import MotionGrid, ShardHeader, VideoEntry
from cmd_extract.shard.folders import Folders, folder_paths, open_folders
from cmd_extract.shard.pictures import decode_jpegs
from cmd_extract.shard.videos import Videos

_NUMBERS = ("frame_count", "fps", "source_width", "source_height")


class Shards:
    """All videos of one or several output folders of ``cmd-extract run``; cheap to pickle, safe to use after a fork.

    A video is selected by its position in ``videos``, its id or its entry.

    Attributes:
        folder: the output folder, the first one if there are several.
        videos: all videos, in manifest order; the ids of several folders are preceded by ``1/``, ``2/`` and so on.
        header: sizes and settings, common to all videos.
    """

    folder: Path
    videos: Videos
    header: ShardHeader

    def __init__(self, folders: Folders) -> None:
        self._shards = open_folders(folders)
        self.folder = self._shards.folders[0]
        self.videos = self._shards.videos
        self.header = self._shards.header
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.videos)

    def __repr__(self) -> str:
        return f"<{len(self)} videos in {self.folder}>"

    def table(self) -> dict[str, list[object]]:
        """Return the videos as columns by name, for instance for ``pandas.DataFrame``.

        Columns: row, video_id, label, group, frame_count, fps, source_width, source_height, codec, and one per split.
        """
        videos = self.videos
        columns: dict[str, list[object]] = {
            "row": videos.numbers("row").tolist(),
            "video_id": [*videos.texts("video_id")],
        }
        columns |= {name: [*videos.names(name).texts()] for name in ("label", "group")}
        columns |= {name: videos.numbers(name).tolist() for name in _NUMBERS}
        columns["codec"] = [*videos.names("codec").texts()]
        return columns | {name: [*videos.split(name).texts()] for name in sorted(videos.split_columns)}

    def video(self, video: int | str | VideoEntry) -> VideoEntry:
        """Return the entry of a video.

        Raises:
            KeyError: no video has this id.
            IndexError: the position is out of range.
        """
        if isinstance(video, VideoEntry):
            return video
        if isinstance(video, str):
            if not self._numbers:
                self._numbers = {name: number for number, name in enumerate(self.videos.texts("video_id"))}
            if video not in self._numbers:
                raise KeyError(f"no video {video!r} in {self.folder}")
            video = self._numbers[video]
        return self.videos[video]

    def clip(
        self, video: int | str | VideoEntry, start: int = 0, frames: int | None = None, *, stride: int = 1
    ) -> NDArray[np.uint8]:
        """Return decoded frames of a video, (T, height, width, 3) uint8, RGB.

        Args:
            video: the video.
            start: first frame.
            frames: number of frames T; None for all up to the end.
            stride: distance between two frames.

        Raises:
            IndexError: a frame is out of range.
            ShardError: the shards contain no small frames, or a stored frame is damaged.
        """
        entry = self.video(video)
        if not self.header.config.get("store_frames", True):
            raise ShardError(
                f"{self.folder}: extracted with --no-frames; extract again with --frames into another folder"
            )
        stop = entry.frame_count if frames is None else start + frames * stride
        jpegs = self._shards.frame_jpegs(entry, range(start, stop, stride))
        return self._decode(jpegs, self.header.frame_width, self.header.frame_height, f"{entry.video_id}: a frame")

    def keyframe(self, video: int | str | VideoEntry, number: int = 0) -> NDArray[np.uint8]:
        """Return a decoded keyframe, (height, width, 3) uint8, RGB, of the canonical size.

        Args:
            video: the video.
            number: index into ``keyframe_indices`` of the video.

        Raises:
            IndexError: there is no such keyframe.
            ShardError: the stored keyframe is damaged.
        """
        entry = self.video(video)
        jpeg = self._shards.keyframe_jpeg(entry, number)
        header, name = self.header, f"{entry.video_id}: keyframe {number}"
        picture: NDArray[np.uint8] = self._decode([jpeg], header.canonical_width, header.canonical_height, name)[0]
        return picture

    def motion(self, video: int | str | VideoEntry, start: int = 0, stop: int | None = None) -> MotionGrid:
        """Return the motion of frames ``start`` to ``stop`` - 1 of a video, by default of all.

        Raises:
            IndexError: a frame is out of range.
            ShardError: the stored motion is damaged.
        """
        entry = self.video(video)
        try:
            return self._shards.motion(entry, start, entry.frame_count if stop is None else stop)
        except OSError as error:
            raise ShardError(f"{self.folder}: {entry.video_id}: motion cannot be read ({error})") from error

    def pts_seconds(self, video: int | str | VideoEntry) -> NDArray[np.float64]:
        """Return (F,) float64, the time of each frame since the first frame of the source file."""
        return self._shards.pts_seconds(self.video(video))

    def frame_types(self, video: int | str | VideoEntry) -> NDArray[np.bytes_]:
        """Return (F,) S1, the type of each frame (I, P or B) in the stream that the vectors come from."""
        return self._shards.frame_types(self.video(video))

    def _decode(self, jpegs: Sequence[memoryview], width: int, height: int, name: str) -> NDArray[np.uint8]:
        try:
            return decode_jpegs(jpegs, width, height)
        except ValueError as error:
            raise ShardError(f"{self.folder}: {name} is not a readable JPEG ({error})") from error


def open_shards(folder: str | PathLike[str] | Sequence[str | PathLike[str]]) -> Shards:
    """Open an output folder of ``cmd-extract run``, or several that were extracted with the same settings.

    Raises:
        ValueError: the sequence is empty.
        ShardError: a folder contains no complete extraction, or was extracted with other settings.
    """
    return Shards(folder_paths(folder))
