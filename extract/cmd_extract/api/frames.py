"""Frames of video files, as a shard would store them, decoded by child processes."""

from __future__ import annotations

import queue
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import find_ffmpeg
from cmd_extract.decode.frames import ExtractedFrames, extract_frames
from cmd_extract.errors import VideoError
from cmd_extract.run.containment import ContainedExtractor
from cmd_extract.run.job import Limits
from cmd_extract.shard.pictures import decode_jpegs
from cmd_extract.system.files import remove
from cmd_extract.system.mapping import map_file


class VideoFrames:
    """Small frames of one video file; usable until the iteration that returned it continues.

    Attributes:
        path: the video file.
        frame_count: number of frames F.
        width, height: size of the frames in pixels.
    """

    def __init__(self, path: Path, extracted: ExtractedFrames, config: ExtractConfig) -> None:
        self.path = path
        self.frame_count = len(extracted.sizes)
        self.width, self.height = config.frame_size
        self._bytes = map_file(extracted.jpeg, np.uint8).data
        self._offsets = [0, *np.cumsum(extracted.sizes).tolist()]

    def read(self, frames: Sequence[int]) -> NDArray[np.uint8]:
        """Decode some frames, in this order; a repeated frame is decoded once.

        Returns:
            (N, height, width, 3) uint8, RGB.

        Raises:
            IndexError: a frame number is out of range.
        """
        distinct = sorted(set(frames))
        if distinct and not 0 <= distinct[0] <= distinct[-1] < self.frame_count:
            raise IndexError(
                f"frames {distinct[0]} to {distinct[-1]} of {self.path}, which has {self.frame_count} frames"
            )
        jpegs = [self._bytes[self._offsets[frame] : self._offsets[frame + 1]] for frame in distinct]
        decoded = decode_jpegs(jpegs, self.width, self.height)
        return decoded[[distinct.index(frame) for frame in frames]]


def iterate_videos(
    paths: Sequence[str | PathLike[str]],
    config: ExtractConfig,
    *,
    workers: int = 1,
    contained: bool = True,
    limits: Limits | None = None,
) -> Iterator[VideoFrames | VideoError]:
    """Yield the frames of each video, or the error that prevented their decoding, in the order of ``paths``.

    A few videos are decoded ahead. Temporary files take about 5 kB per frame of each.

    Args:
        paths: video files.
        config: extraction settings.
        workers: number of videos to decode at a time.
        contained: decode in child processes, see ``cmd_extract.read_motion``.
        limits: limits per video.

    Raises:
        RunError: there is no room for temporary files.
        FfmpegError: there is no usable FFmpeg.
    """
    with _Decoders(config, max(1, min(workers, len(paths))), limits or Limits(), contained=contained) as decoders:
        ahead: deque[Future[VideoFrames | VideoError]] = deque()
        for number in range(len(paths)):
            while len(ahead) <= workers and number + len(ahead) < len(paths):
                ahead.append(decoders.submit(Path(paths[number + len(ahead)])))
            yield ahead.popleft().result()
            decoders.remove_oldest()


class _Decoders:
    """Threads that each have videos decoded by a child process; a context manager that ends them all.

    Args:
        config: extraction settings.
        count: number of threads.
        limits: limits per video.
        contained: whether the threads use child processes.
    """

    def __init__(self, config: ExtractConfig, count: int, limits: Limits, *, contained: bool) -> None:
        self._config, self._contained, self._binary = config, contained, find_ffmpeg()
        self._extractors = [
            ContainedExtractor(config, self._binary, limits, extract_frames, new_interpreter=True) for _ in range(count)
        ]
        self._free: queue.SimpleQueue[ContainedExtractor[ExtractedFrames]] = queue.SimpleQueue()
        for extractor in self._extractors:
            self._free.put(extractor)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="cmd-extract")
        self._scratch = tempfile.TemporaryDirectory(prefix="cmd-extract-")
        self._folders: deque[Path] = deque()
        self._ended = threading.Event()

    def submit(self, path: Path) -> Future[VideoFrames | VideoError]:
        """Have a video decoded."""
        folder = Path(tempfile.mkdtemp(dir=self._scratch.name))
        self._folders.append(folder)
        return self._pool.submit(self._decode, path, folder)

    def remove_oldest(self) -> None:
        """Remove the temporary files of the first video that still has any."""
        remove(self._folders.popleft())

    def _decode(self, path: Path, folder: Path) -> VideoFrames | VideoError:
        extractor = self._free.get()
        try:
            if self._ended.is_set():
                raise VideoError("error", "the iteration has ended")
            if self._contained:
                frames = extractor.extract(path.absolute(), folder)
            else:
                frames = extract_frames(path.absolute(), self._config, folder, self._binary)
        except VideoError as error:
            return error.of(str(path))
        finally:
            self._free.put(extractor)
        return VideoFrames(path, frames, self._config)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for extractor in self._extractors:
            extractor.kill()  # a thread that waits for a reply gets an error
        self._pool.shutdown(cancel_futures=True)
        for extractor in self._extractors:
            extractor.__exit__(None, None, None)
        self._scratch.cleanup()
