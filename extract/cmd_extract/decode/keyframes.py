"""JPEGs of I-frames that are decoded where their vectors are read.

All of it is integer arithmetic that does not depend on the processor: values are brought to full range here, and
transformed by libjpeg-turbo's slow integer method. Only sources that are not 8-bit 4:2:0 pass through FFmpeg's scaler.
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
        self._stretches = (FullRange.of_luma(), FullRange.of_chroma(), FullRange.of_chroma())

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
            y, u, v = (stretch(plane) for stretch, plane in zip(self._stretches, (y, u, v), strict=True))
        jpeg: bytes = simplejpeg.encode_jpeg_yuv_planes(y, u, v, quality=self._quality, fastdct=False)
        return jpeg


class FullRange:
    """Makes values of full range (0 to 255) of a plane of limited range: ``(value * factor - offset) // divisor``.

    Whole arrays in 16 bits: 48 microseconds for a picture of 340x256, where looking up each value in a table took 82.
    The arrays are kept for the next picture (else 7 % more), so each result is overwritten by the next.

    Args:
        lowest, highest: values beyond are taken for these.
        factor, offset, divisor: see above. From ``lowest`` to ``highest``, products must be below 65,536, and not
            below ``offset``.
    """

    def __init__(self, *, lowest: int, highest: int, factor: int, offset: int, divisor: int) -> None:
        self._limits = np.uint8(lowest), np.uint8(highest)
        self._factor, self._offset, self._divisor = np.uint16(factor), np.uint16(offset), np.uint16(divisor)
        self._bytes, self._products = np.empty((0, 0), np.uint8), np.empty((0, 0), np.uint16)

    @classmethod
    def of_luma(cls) -> FullRange:
        """16 to 235 become 0 to 255, rounded; steps of 255/219 are 85/73."""
        return cls(lowest=16, highest=235, factor=85, offset=16 * 85 - 73 // 2, divisor=73)

    @classmethod
    def of_chroma(cls) -> FullRange:
        """128 stays, steps become 255/224, rounded, halves down."""
        return cls(lowest=16, highest=240, factor=255, offset=128 * (255 - 224) - (224 // 2 - 1), divisor=224)

    def __call__(self, plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The values of a plane, stretched; valid until the next call."""
        if plane.shape != self._bytes.shape:
            self._bytes, self._products = np.empty(plane.shape, np.uint8), np.empty(plane.shape, np.uint16)
        values, products = self._bytes, self._products
        np.clip(plane, *self._limits, out=values)  # numpy's minimum and maximum take eight times as long
        # The type must be named: numpy before 2 would multiply in 8 bits, since the factor fits.
        np.multiply(values, self._factor, out=products, dtype=np.uint16)
        np.subtract(products, self._offset, out=products)
        np.floor_divide(products, self._divisor, out=products)
        np.copyto(values, products, casting="unsafe")
        return values
