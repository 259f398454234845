from __future__ import annotations

import math

import pytest

from cmd_extract.config import ExtractConfig
from cmd_extract.schema import hash_json


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 341), ("height", 8), ("codec", "hevc"), ("gop", 0), ("quality", 99), ("fps", "fast"), ("fps", "1/0"),
        ("fps", "1e9"), ("fps", "1_5"), ("frame_short_side", 300), ("jpeg_quality", 1), ("cell_px", 4),
        ("transcode", "sometimes"), ("segment_seconds", 0.0),
        ("segment_seconds", math.inf), ("segment_seconds", math.nan),
    ],
)  # fmt: skip
def test_errors_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        ExtractConfig(**{field: value})


def test_quality_range_depends_on_the_codec() -> None:
    assert ExtractConfig(codec="h264", quality=51).resolved_quality == 51
    with pytest.raises(ValueError, match="quality: must be at least 1 and at most 31, got 51"):
        ExtractConfig(quality=51)


def test_constant_frame_rate_requires_transcoding() -> None:
    assert ExtractConfig(fps="30000/1001").fps == "30000/1001"
    with pytest.raises(ValueError, match="fps: 25 requires transcode always, got auto"):
        ExtractConfig(fps="25", transcode="auto")


def test_frame_size_keeps_the_aspect_ratio() -> None:
    assert ExtractConfig().frame_size == (170, 128)
    assert ExtractConfig(width=256, height=340).frame_size == (128, 170)


def test_default_quality_is_resolved_before_hashing() -> None:
    assert ExtractConfig().describe("x") == ExtractConfig(quality=3).describe("x")
    assert ExtractConfig().describe("x") != ExtractConfig().describe("y")


def test_extractor_version_is_part_of_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    described = ExtractConfig().describe("x")
    assert (described["format_version"], described["extractor_version"]) == (2, 1)
    monkeypatch.setattr("cmd_extract.config.EXTRACTOR_VERSION", 2)
    assert hash_json(ExtractConfig().describe("x")) != hash_json(described)


@pytest.mark.parametrize(
    ("name", "values"),
    [("fps", ("25", "25.0", "50/2", "2.5e1")), ("fps", ("29.97", "2997/100")), ("segment_seconds", (2, 2.0))],
)
def test_numbers_are_normalized_before_they_are_compared_or_hashed(name: str, values: tuple[object, ...]) -> None:
    configs = [ExtractConfig(**{name: value}) for value in values]
    assert len(set(configs)) == 1
    assert len({hash_json(config.describe("x")) for config in configs}) == 1
