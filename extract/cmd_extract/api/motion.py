"""Motion of one video file: frame types, times, grids, validity and vectors, without a shard."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import find_ffmpeg
from cmd_extract.decode.motion import MOTION_STREAMS, MotionFrame, MotionInfo, MotionSession, MotionStreamKind
from cmd_extract.errors import VideoError
from cmd_extract.run.containment import ContainedExtractor
from cmd_extract.run.job import Limits
from cmd_extract.system.validation import require


@dataclass(frozen=True, kw_only=True)
class VideoMotion:
    """Motion of all F frames of a video.

    Attributes:
        info: sizes.
        frame_types: (F,) S1, type of each frame.
        pts_seconds: (F,) float64, seconds since the first frame.
        grid_quarter_px: (F, 2, gh, gw) int16, see ``MotionFrame``.
        valid: (F, gh, gw) bool.
    """

    info: MotionInfo
    frame_types: NDArray[np.bytes_]
    pts_seconds: NDArray[np.float64]
    grid_quarter_px: NDArray[np.int16]
    valid: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.frame_types)


class MotionReader:
    """Motion of one video file; iterating yields its frames (``MotionFrame``) in presentation order.

    Every iteration reads the file from its beginning. Memory does not depend on the length of the video.

    Attributes:
        path: the video file.
        info: sizes.
    """

    path: Path
    info: MotionInfo

    def __init__(
        self,
        path: Path,
        config: ExtractConfig,
        stream: MotionStreamKind,
        *,
        vectors: bool,
        contained: bool,
        limits: Limits,
    ) -> None:
        self.path = path
        new_session = partial(MotionSession, stream, vectors=vectors)
        self._session = partial(_open_session, path, config, new_session, limits, contained=contained)
        self._opened: ExitStack | None = ExitStack()  # for the first iteration
        self.info, self._next_batch = self._opened.enter_context(self._session())
        weakref.finalize(self, self._opened.close)

    def __iter__(self) -> Iterator[MotionFrame]:
        stack, self._opened = self._opened, None
        with stack or ExitStack() as entered:
            next_batch = self._next_batch if stack else entered.enter_context(self._session())[1]
            while batch := next_batch():
                yield from batch

    def close(self) -> None:
        """End the child process of a reader that has not been iterated over; otherwise there is none."""
        if self._opened:
            self._opened.close()
            self._opened = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self) -> VideoMotion:
        """Read all frames into arrays: 7 kB per frame of 340x256 pixels."""
        frames = list(self)
        return VideoMotion(
            info=self.info,
            frame_types=np.array([frame.frame_type for frame in frames], "S1"),
            pts_seconds=np.array([frame.time_seconds for frame in frames], np.float64),
            grid_quarter_px=np.stack([frame.grid_quarter_px for frame in frames]),
            valid=np.stack([frame.valid for frame in frames]),
        )


def read_motion(
    path: str | PathLike[str],
    *,
    stream: MotionStreamKind = "canonical",
    vectors: bool = False,
    config: ExtractConfig | None = None,
    contained: bool = True,
    limits: Limits | None = None,
) -> MotionReader:
    """Open the motion of one video file.

    Decoding uses one thread, so the result is reproducible; decoders with several threads corrupt motion vectors.

    Args:
        path: any video file that FFmpeg decodes.
        stream: ``canonical`` transcodes the video to the stream that ``cmd-extract run`` makes, and gives what a shard
            would store. ``source`` reads the file's own vectors at its own size, without transcoding; only H.264 and
            MPEG-4 Part 2 have them. Times are then those of the stream, without the repair of equal or backward ones.
        vectors: also return the list of vectors of each frame, exactly as in the bitstream.
        config: extraction settings. Of a ``source`` stream, only ``cell_px`` is used.
        contained: decode in a child process, so that a crash, a hang or excessive memory use of a decoder is a
            ``VideoError`` instead of the end of this process.
        limits: time limit, for the next frames to arrive, and memory limit of the child process.

    Raises:
        VideoError: the file cannot be read, or has no motion vectors.
        FfmpegError: there is no usable FFmpeg.
        ValueError: ``stream`` is unknown.
    """
    require(stream in MOTION_STREAMS, f"stream: must be one of {', '.join(MOTION_STREAMS)}, got {stream!r}")
    return MotionReader(
        Path(path), config or ExtractConfig(), stream, vectors=vectors, contained=contained, limits=limits or Limits()
    )


@contextmanager
def _open_session(
    path: Path, config: ExtractConfig, new_session: Callable[[], MotionSession], limits: Limits, *, contained: bool
) -> Iterator[tuple[MotionInfo, Callable[[], list[MotionFrame]]]]:
    """Start reading; yield the sizes and a function that returns the next frames, none at the end."""
    binary, session = find_ffmpeg(), new_session()
    with (
        tempfile.TemporaryDirectory(prefix="cmd-extract-") as folder,
        ContainedExtractor(config, binary, limits, session, new_interpreter=True) as child,
    ):

        def step() -> MotionInfo | list[MotionFrame]:
            try:
                if contained:
                    return child.extract(path.absolute(), Path(folder))
                return session(path.absolute(), config, Path(folder), binary)
            except VideoError as error:
                raise error.of(str(path)) from None

        def next_batch() -> list[MotionFrame]:
            batch = step()
            assert isinstance(batch, list), "only the first step returns the sizes"
            return batch

        info = step()
        assert isinstance(info, MotionInfo), "the first step returns the sizes"
        yield info, next_batch
