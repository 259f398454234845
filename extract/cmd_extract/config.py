"""Extraction configuration: validated, hashed and stored in every shard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from importlib.metadata import version
from typing import Any, Literal, get_args

from cmd_extract.schema import EXTRACTOR_VERSION, FORMAT_VERSION
from cmd_extract.system.validation import parse_number, require, require_choice, require_finite, require_range

Codec = Literal["mpeg4", "h264"]
Transcode = Literal["auto", "always", "never"]
CODECS: tuple[Codec, ...] = get_args(Codec)
TRANSCODE: tuple[Transcode, ...] = get_args(Transcode)
DEFAULT_QUALITY: dict[Codec, int] = {"mpeg4": 3, "h264": 23}
_QUALITY_RANGE: dict[Codec, tuple[int, int]] = {"mpeg4": (1, 31), "h264": (1, 51)}


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Settings that determine the content of a shard.

    Equal settings are equal however they are written: numbers are normalized before they are compared or hashed.

    Attributes:
        width, height: size in pixels of the canonical stream and of the keyframes; even.
        codec: codec of the canonical stream, ``mpeg4`` (MPEG-4 Part 2, as in the paper) or ``h264``.
        gop: distance between I-frames in frames. It is exact, not a maximum: scene cuts insert no I-frames.
        quality: constant quantizer (``mpeg4``, 1-31) or rate factor (``h264``, 1-51) of the canonical stream; lower is
            better. None selects the codec's default.
        fps: constant frame rate to convert to, as a decimal or fraction (``30000/1001``); stored as a fraction in
            lowest terms (``25``, ``2997/100``). None keeps every frame.
        frame_short_side: short side in pixels of the small JPEG frames.
        jpeg_quality: FFmpeg's quantizer for all JPEGs, 2 (best) to 31.
        cell_px: side of a motion grid cell, 8 (lossless) or 16 pixels.
        transcode: ``always`` reads the motion vectors of the canonical stream; ``never`` those of the source, which
            must be H.264 or MPEG-4 Part 2 of exactly ``width`` x ``height``; ``auto`` those of the source where it is
            equivalent to a canonical stream (no B-frames, one reference frame, I-frames at most ``gop`` apart, same
            size, not rotated), and of the canonical stream otherwise.
        store_frames: whether to store the small JPEG frames. Shards without them cannot be used for training.
        segment_seconds: length of the samples that videos are cut into, at I-frames; None keeps videos whole.
    """

    width: int = 340
    height: int = 256
    codec: Codec = "mpeg4"
    gop: int = 12
    quality: int | None = None
    fps: str | None = None
    frame_short_side: int = 128
    jpeg_quality: int = 3
    cell_px: int = 8
    transcode: Transcode = "always"
    store_frames: bool = True
    segment_seconds: float | None = None

    def __post_init__(self) -> None:
        require_range(self, "width", "height", ge=32, le=4096)
        for name in ("width", "height"):
            require(getattr(self, name) % 2 == 0, f"{name}: must be even, got {getattr(self, name)}")
        require_choice(self, "codec", CODECS)
        require_range(self, "gop", ge=1, le=600)
        if self.quality is not None:
            low, high = _QUALITY_RANGE[self.codec]
            require_range(self, "quality", ge=low, le=high)
        require_range(self, "frame_short_side", ge=16, le=min(self.width, self.height))
        require_range(self, "jpeg_quality", ge=2, le=31)
        require(self.cell_px in (8, 16), f"cell_px: must be 8 or 16, got {self.cell_px}")
        require_choice(self, "transcode", TRANSCODE)
        if self.segment_seconds is not None:
            require_finite(self, "segment_seconds")
            require_range(self, "segment_seconds", gt=0)
            self._normalize("segment_seconds", float(self.segment_seconds))
        if self.fps is not None:
            self._normalize("fps", str(self._parse_fps(self.fps)))
            require(self.transcode == "always", f"fps: {self.fps} requires transcode always, got {self.transcode}")

    def _normalize(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the instance is frozen

    @staticmethod
    def _parse_fps(text: str) -> Fraction:
        rate = parse_number(text)
        if rate is None:
            raise ValueError(f"fps: must be a number or fraction such as 25 or 30000/1001, got {text!r}")
        require(Fraction(1, 10) <= rate <= 1000, f"fps: must be at least 0.1 and at most 1000, got {text}")
        return rate

    @property
    def resolved_quality(self) -> int:
        """Quality of the canonical stream: ``quality``, or the codec's default."""
        return DEFAULT_QUALITY[self.codec] if self.quality is None else self.quality

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height in pixels of the small frames: the canonical size scaled and rounded to even numbers."""
        scale = Fraction(self.frame_short_side, min(self.width, self.height))
        return _even(self.width * scale), _even(self.height * scale)

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> ExtractConfig:
        """Return the configuration that ``describe`` has described.

        Raises:
            ValueError: a setting is missing or out of range.
        """
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in described]
        require(not missing, f"extraction settings: {', '.join(missing)} missing")
        return cls(**{name: described[name] for name in names})

    def describe(self, ffmpeg_version: str) -> dict[str, Any]:
        """Return the resolved configuration as stored; its ``hash_json`` identifies an extraction.

        Args:
            ffmpeg_version: first line of ``ffmpeg -version``; encoders differ between versions.
        """
        resolved = asdict(self) | {"quality": self.resolved_quality}
        resolved |= {"format_version": FORMAT_VERSION, "extractor_version": EXTRACTOR_VERSION, "ffmpeg": ffmpeg_version}
        if self.transcode != "always":
            # Keyframes of sources that are not transcoded come from PyAV and simplejpeg, not from the FFmpeg binary.
            resolved["keyframes"] = f"PyAV {version('av')}, simplejpeg {version('simplejpeg')}"
        return resolved


def _even(length: Fraction) -> int:
    return max(2, 2 * round(length / 2))
