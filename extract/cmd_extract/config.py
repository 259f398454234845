"""Extraction configuration: validated once, hashed, stored in every shard."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from importlib.metadata import version
from typing import Any

from cmd_extract.schema import FORMAT_VERSION

CODECS = ("mpeg4", "h264")
TRANSCODE = ("auto", "always", "never")
DEFAULT_QUALITY = {"mpeg4": 3, "h264": 23}
_QUALITY_RANGE = {"mpeg4": (1, 31), "h264": (1, 51)}


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: {value} is not between {low} and {high}")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Everything that decides what a shard contains.

    Attributes:
        width, height: size in pixels of the canonical stream and of the keyframes; even.
        codec: codec of the canonical stream, ``mpeg4`` (MPEG-4 Part 2, as in the paper) or ``h264``.
        gop: distance of I-frames in frames. Scene cuts insert none, so it is exact, not a maximum.
        quality: constant quantiser of the canonical stream (``mpeg4`` 1-31) or rate factor (``h264`` 1-51); lower is
            better. None takes the codec's default.
        fps: constant frame rate to convert to, as a decimal or fraction (``30000/1001``); None keeps every frame.
        frame_short_side: short side in pixels of the small JPEG frames.
        jpeg_quality: FFmpeg's quantiser for all JPEGs, 2 (best) to 31.
        cell_px: side of a motion grid cell, 8 (lossless) or 16 pixels.
        transcode: ``always`` reads vectors of the canonical stream; ``never`` those of the source, which must be H.264
            or MPEG-4 Part 2 of exactly ``width`` x ``height``; ``auto`` those of sources that are like a canonical
            stream (no B-frames, one reference, I-frames at most ``gop`` apart, same size, not rotated).
        store_frames: whether to store the small JPEG frames. Without them a shard serves analysis, not training.
        segment_seconds: cut videos into samples of this length, at I-frames; None keeps them whole.
    """

    width: int = 340
    height: int = 256
    codec: str = "mpeg4"
    gop: int = 12
    quality: int | None = None
    fps: str | None = None
    frame_short_side: int = 128
    jpeg_quality: int = 3
    cell_px: int = 8
    transcode: str = "always"
    store_frames: bool = True
    segment_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            value = getattr(self, name)
            _check_range(name, value, 32, 4096)
            if value % 2:
                raise ValueError(f"{name}: {value} is odd, need an even number of pixels")
        if self.codec not in CODECS:
            raise ValueError(f"codec: {self.codec!r} is not one of {', '.join(CODECS)}")
        _check_range("gop", self.gop, 1, 600)
        _check_range("quality", self.resolved_quality, *_QUALITY_RANGE[self.codec])
        _check_range("frame_short_side", self.frame_short_side, 16, min(self.width, self.height))
        _check_range("jpeg_quality", self.jpeg_quality, 2, 31)
        if self.cell_px not in (8, 16):
            raise ValueError(f"cell_px: {self.cell_px} is not 8 or 16")
        if self.transcode not in TRANSCODE:
            raise ValueError(f"transcode: {self.transcode!r} is not one of {', '.join(TRANSCODE)}")
        if self.segment_seconds is not None and not self.segment_seconds > 0:
            raise ValueError(f"segment_seconds: {self.segment_seconds} is not positive")
        if self.fps is not None:
            self._check_fps(self.fps)
            if self.transcode != "always":
                raise ValueError(f"fps: {self.fps} needs transcode always, not {self.transcode}")

    @staticmethod
    def _check_fps(text: str) -> None:
        try:
            rate = Fraction(text)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"fps: {text!r} is not a number or fraction such as 25 or 30000/1001") from None
        if not Fraction(1, 10) <= rate <= 1000:
            raise ValueError(f"fps: {text} is not between 0.1 and 1000")

    @property
    def resolved_quality(self) -> int:
        """The quality in force, the codec's default if none was asked for."""
        return DEFAULT_QUALITY[self.codec] if self.quality is None else self.quality

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height in pixels of the small frames: the canonical picture scaled, rounded to even numbers."""
        scale = Fraction(self.frame_short_side, min(self.width, self.height))
        return _even(self.width * scale), _even(self.height * scale)

    def describe(self, ffmpeg_version: str) -> dict[str, Any]:
        """The resolved configuration as stored; ``hash_json`` of it identifies what a shard holds.

        Args:
            ffmpeg_version: first line that the FFmpeg binary prints of itself; encoders differ between versions.
        """
        resolved = asdict(self) | {"quality": self.resolved_quality}
        resolved |= {"format_version": FORMAT_VERSION, "ffmpeg": ffmpeg_version}
        if self.transcode != "always":
            # Keyframes of sources with vectors of their own are not made by FFmpeg's program.
            resolved["keyframes"] = f"PyAV {version('av')}, simplejpeg {version('simplejpeg')}"
        return resolved


def _even(length: Fraction) -> int:
    return max(2, 2 * round(length / 2))
