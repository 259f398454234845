"""Reads frame types and motion vectors of a canonical stream with mvextractor, in vectors-only mode.

mvextractor always decodes with frame threads, which corrupts the vectors of streams with B-frames, and opens whatever
its file refers to: it only ever reads streams that this project has written, which have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract.source import VideoError

COLUMNS = 10
"""Columns of a vector: source, w, h, src_x, src_y, dst_x, dst_y, motion_x, motion_y, motion_scale."""


@dataclass(frozen=True, kw_only=True)
class FrameVectors:
    """The vectors of one frame.

    Attributes:
        frame_type: ``I``, ``P`` or ``B``.
        vectors: (N, 10) int32, columns as in ``COLUMNS``; they point from a block to where it came from.
    """

    frame_type: str
    vectors: NDArray[np.int32]

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.shape[1] != COLUMNS:
            raise ValueError(f"vectors: shape {self.vectors.shape}, need (N, {COLUMNS})")


def read_vectors(canonical: Path) -> Iterator[FrameVectors]:
    """Yields the vectors of every frame of a canonical stream, in order.

    Raises:
        VideoError: stage ``motion``; the stream cannot be opened.
    """
    # Only this submodule: the package itself imports OpenCV, which may want libraries that servers lack.
    from mvextractor.videocap import VideoCap

    capture = VideoCap()
    if not capture.open(str(canonical)):
        raise VideoError("motion", "mvextractor cannot open the canonical stream")
    try:
        capture.set_decode_frames(False)
        while True:
            success, _, vectors, frame_type = capture.read()
            if not success:
                return
            yield FrameVectors(frame_type=frame_type, vectors=vectors)
    finally:
        capture.release()
