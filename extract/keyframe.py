"""JPEGs of I-frames that are decoded where their vectors are read.

All of it is integer arithmetic that does not depend on the processor: tables for the range of values, and
libjpeg-turbo's slow integer transform. Only sources that are not 8-bit 4:2:0 pass through FFmpeg's scaler.
"""

from __future__ import annotations

import av
import numpy as np
import simplejpeg
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from numpy.typing import NDArray

_LIMITED, _FULL = "yuv420p", "yuvj420p"
_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
# Mean steps over the 64 coefficients: of MPEG's intra matrix, which FFmpeg scales by its quantiser over 8, and of the
# JPEG standard's luminance table, which libjpeg scales by its quality.
_MPEG_MEAN, _JPEG_MEAN = 33.03125, 57.625


def libjpeg_quality(quantiser: int) -> int:
    """The quality of libjpeg whose quantiser steps are on average those of FFmpeg's ``quantiser`` (2 to 31)."""
    percent = 100 * _MPEG_MEAN * quantiser / 8 / _JPEG_MEAN
    return round(100 - percent / 2 if percent <= 100 else 5000 / percent)


class KeyframeEncoder:
    """Makes 4:2:0 JPEGs of full range of decoded frames, with the colour matrix they have.

    Their sides are even, as ``ExtractConfig`` wants them: of odd ones libjpeg-turbo would read beyond the planes.

    Args:
        quantiser: FFmpeg's, 2 (best) to 31.
    """

    def __init__(self, quantiser: int) -> None:
        self._quality = libjpeg_quality(quantiser)
        self._reformatter = VideoReformatter()
        chroma = _full_range(128, 224, grey=128)
        self._tables = (_full_range(16, 219), chroma, chroma)

    def __call__(self, frame: av.VideoFrame) -> bytes:
        """One frame as a JPEG of its own size."""
        if frame.format.name not in (_LIMITED, _FULL):
            frame = self._reformatter.reformat(
                frame, format=_FULL, interpolation=_EXACT, dst_color_range=ColorRange.JPEG, threads=1
            )
        y, u, v = (
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
            for plane in frame.planes
        )
        if frame.format.name == _LIMITED and frame.color_range != ColorRange.JPEG:
            y, u, v = (_look_up(table, plane) for table, plane in zip(self._tables, (y, u, v), strict=True))
        jpeg: bytes = simplejpeg.encode_jpeg_yuv_planes(y, u, v, quality=self._quality, fastdct=False)
        return jpeg


def _full_range(zero: int, steps: int, grey: int = 0) -> bytes:
    """Table of 256 values: ``steps`` of limited range, from ``zero`` on, become 255 of full range."""
    return np.clip(np.round((np.arange(256) - zero) * 255 / steps + grey), 0, 255).astype(np.uint8).tobytes()


def _look_up(table: bytes, plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    # numpy.take, whose indices are eight bytes each, is quicker by itself, but took 5 % of a run where this takes 4.
    return np.frombuffer(plane.tobytes().translate(table), np.uint8).reshape(plane.shape)
