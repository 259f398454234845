"""Decoding of stored JPEGs; pixels do not depend on the build of the JPEG library."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simplejpeg
from numpy.typing import NDArray


def decode_jpegs(jpegs: Sequence[bytes | memoryview], width: int, height: int) -> NDArray[np.uint8]:
    """Decode pictures of one size.

    Returns:
        (N, height, width, 3) uint8, RGB.

    Raises:
        ValueError: a JPEG is damaged or has another size.
    """
    pictures = np.empty((len(jpegs), height, width, 3), np.uint8)
    for jpeg, picture in zip(jpegs, pictures, strict=True):
        # As in training: the fast transforms would make pixels depend on the build of the library.
        decoded = simplejpeg.decode_jpeg(jpeg, "RGB", fastdct=False, fastupsample=False, buffer=picture)
        if decoded.shape != picture.shape:
            raise ValueError(f"{decoded.shape[1]} x {decoded.shape[0]} pixels, expected {width} x {height}")
    return pictures
