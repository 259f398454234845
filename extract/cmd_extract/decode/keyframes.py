"""JPEG encoding of the I-frames that are decoded while reading the source's own motion vectors.

The result does not depend on the processor, since all arithmetic is on integers: values are expanded to full range here
and transformed by libjpeg-turbo's slow integer DCT. Only sources that are not 8-bit 4:2:0 go through FFmpeg's scaler.
"""

from __future__ import annotations

import av
import numpy as np
import simplejpeg
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from numpy.typing import NDArray

_LIMITED, _FULL = "yuv420p", "yuvj420p"
_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
# Mean quantizer steps over the 64 coefficients: of MPEG's intra matrix, which FFmpeg scales by quantizer / 8, and of
# the luminance table of the JPEG standard, which libjpeg scales according to its quality.
_MPEG_MEAN_STEP, _JPEG_MEAN_STEP = 33.03125, 57.625


def libjpeg_quality(quantizer: int) -> int:
    """Return the libjpeg quality with the same mean quantizer step as FFmpeg's ``quantizer`` (2 to 31)."""
    percent = 100 * _MPEG_MEAN_STEP * quantizer / 8 / _JPEG_MEAN_STEP
    return round(100 - percent / 2 if percent <= 100 else 5000 / percent)


class KeyframeEncoder:
    """Encodes decoded frames as full-range 4:2:0 JPEGs without changing the color matrix.

    Width and height must be even, as ``ExtractConfig`` ensures: for odd sizes libjpeg-turbo would read past the planes.

    Args:
        quantizer: quality on FFmpeg's scale, 2 (best) to 31.
    """

    def __init__(self, quantizer: int) -> None:
        self._quality = libjpeg_quality(quantizer)
        self._reformatter = VideoReformatter()
        self._expanders = (RangeExpander.luma(), RangeExpander.chroma(), RangeExpander.chroma())

    def __call__(self, frame: av.VideoFrame) -> bytes:
        """Encode one frame at its own size."""
        if frame.format.name not in (_LIMITED, _FULL):
            frame = self._reformatter.reformat(
                frame, format=_FULL, interpolation=_EXACT, dst_color_range=ColorRange.JPEG, threads=1
            )
        y, u, v = (
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
            for plane in frame.planes
        )
        if frame.format.name == _LIMITED and frame.color_range != ColorRange.JPEG:
            y, u, v = (expand(plane) for expand, plane in zip(self._expanders, (y, u, v), strict=True))
        jpeg: bytes = simplejpeg.encode_jpeg_yuv_planes(y, u, v, quality=self._quality, fastdct=False)
        return jpeg


class RangeExpander:
    """Expands a plane from limited to full range (0 to 255): ``(value * factor - offset) // divisor``.

    16-bit array arithmetic takes 48 microseconds for a picture of 340x256; a lookup table takes 82. Reusing the arrays
    for the next picture saves 7 %, but each call overwrites the result of the previous one.

    Args:
        lowest, highest: values are clipped to this range.
        factor, offset, divisor: see above. Products of clipped values must be at least ``offset`` and below 65,536.
    """

    def __init__(self, *, lowest: int, highest: int, factor: int, offset: int, divisor: int) -> None:
        self._limits = np.uint8(lowest), np.uint8(highest)
        self._factor, self._offset, self._divisor = np.uint16(factor), np.uint16(offset), np.uint16(divisor)
        self._bytes, self._products = np.empty((0, 0), np.uint8), np.empty((0, 0), np.uint16)

    @classmethod
    def luma(cls) -> RangeExpander:
        """Expander of 16..235 to 0..255, rounded; the step is 255/219 = 85/73."""
        return cls(lowest=16, highest=235, factor=85, offset=16 * 85 - 73 // 2, divisor=73)

    @classmethod
    def chroma(cls) -> RangeExpander:
        """Expander that keeps 128 and scales by 255/224, rounded half down."""
        return cls(lowest=16, highest=240, factor=255, offset=128 * (255 - 224) - (224 // 2 - 1), divisor=224)

    def __call__(self, plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the expanded plane, which is valid until the next call."""
        if plane.shape != self._bytes.shape:
            self._bytes, self._products = np.empty(plane.shape, np.uint8), np.empty(plane.shape, np.uint16)
        values, products = self._bytes, self._products
        np.clip(plane, *self._limits, out=values)  # eight times as fast as minimum and maximum
        # numpy < 2 would multiply in 8 bits without an explicit dtype, since the factor fits.
        np.multiply(values, self._factor, out=products, dtype=np.uint16)
        np.subtract(products, self._offset, out=products)
        np.floor_divide(products, self._divisor, out=products)
        np.copyto(values, products, casting="unsafe")
        return values
