"""Keyframes decoded while reading vectors: the work the decoder skips changes neither pictures nor vectors."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from cmd_extract.decode.keyframes import KeyframeEncoder, RangeExpander, libjpeg_quality
from cmd_extract.decode.vectors import SourceStream, read_vectors

MakeVideo = Callable[..., Path]


def planes(frame: av.VideoFrame) -> list[np.ndarray]:
    depth = 2 if "10le" in frame.format.name else 1
    return [
        np.frombuffer(memoryview(p), np.uint8).reshape(-1, p.line_size)[: p.height, : p.width * depth].copy()
        for p in frame.planes
    ]


def decode_all(path: Path) -> tuple[list[str], list[np.ndarray | None], list[list[np.ndarray]]]:
    """Return frame types, vectors and the planes of I-frames from a decoder that skips nothing."""
    types, vectors, pictures = [], [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.options = {"flags2": "+export_mvs"}
        for frame in container.decode(stream):
            types.append("?IPB"[int(frame.pict_type)])
            side = frame.side_data.get("MOTION_VECTORS")
            vectors.append(None if side is None else side.to_ndarray())
            if types[-1] == "I":
                pictures.append(planes(frame))
    return types, vectors, pictures


@pytest.mark.parametrize(
    "options",
    [
        ("-c:v", "libx264", "-bf", "2", "-g", "9"),
        # I-frames at which decoding cannot start, and intra blocks in P-frames.
        ("-c:v", "libx264", "-bf", "2", "-g", "9", "-x264-params", "open-gop=1:keyint=9:min-keyint=9:scenecut=0"),
        ("-c:v", "libx264", "-bf", "0", "-x264-params", "keyint=30:intra-refresh=1"),
        ("-c:v", "mpeg4", "-bf", "0", "-g", "9"),
        ("-c:v", "mpeg4", "-bf", "2", "-g", "9", "-flags", "+mv4+qpel"),
    ],
)
def test_pictures_and_vectors_equal_those_of_a_full_decode(
    make_video: MakeVideo, tmp_path: Path, options: tuple[str, ...]
) -> None:
    path = make_video(tmp_path / "a.mp4", *options, source="mandelbrot", frames=40)
    types, vectors, pictures = decode_all(path)
    taken: list[list[np.ndarray]] = []

    def take(frame: av.VideoFrame) -> bytes:
        taken.append(planes(frame))
        return b"jpeg"

    damaged: list[bool] = []
    source = SourceStream(
        index=0, size=(160, 120), encode_keyframe=take, decode_all_pictures=False,
        on_damage=lambda: damaged.append(True),
    )  # fmt: skip
    read = list(read_vectors(path, source=source))
    assert not damaged
    assert [r.frame_type for r in read] == types
    assert [r.keyframe_jpeg for r in read] == [b"jpeg" if kind == "I" else None for kind in types]
    for ours, full in zip(read, vectors, strict=True):
        assert len(ours.vectors) == (0 if full is None else len(full))
        for name in ours.vectors.dtype.names if full is not None else ():
            np.testing.assert_array_equal(ours.vectors[name], full[name])
    assert len(taken) == len(pictures) >= 1
    for ours, full in zip(taken, pictures, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, full, strict=True))


@pytest.mark.parametrize(
    "options",
    [("-pix_fmt", "yuv420p"), ("-color_range", "pc", "-pix_fmt", "yuvj420p"), ("-pix_fmt", "yuv422p10le")],
)
def test_keyframe_shows_the_frame_in_full_range(
    make_video: MakeVideo, tmp_path: Path, options: tuple[str, ...]
) -> None:
    path = make_video(tmp_path / "a.mp4", "-c:v", "libx264", "-crf", "12", *options, source="mandelbrot", frames=1)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    with av.open(io.BytesIO(KeyframeEncoder(2)(frame))) as container:
        picture = next(container.decode(video=0))
    assert picture.format.name == "yuvj420p"
    for number, (ours, values) in enumerate(zip(planes(picture), planes(frame), strict=True)):
        expected = values.astype(float)
        if "10le" in frame.format.name:
            expected = values.copy().view(np.uint16).astype(float) / 4
        if len(expected) > len(ours):  # 4:2:2 has twice as many chroma rows
            expected = expected.reshape(-1, 2, expected.shape[1]).mean(axis=1)
        if not frame.format.name.startswith("yuvj"):
            expected = (expected - 16) * 255 / 219 if number == 0 else (expected - 128) * 255 / 224 + 128
        error = ours - np.clip(expected, 0, 255)
        assert np.abs(error).mean() < 2.5
        assert abs(error.mean()) < 0.7


def test_quality_follows_the_quantizer() -> None:
    qualities = [libjpeg_quality(q) for q in range(2, 32)]
    assert qualities == sorted(qualities, reverse=True)
    assert (qualities[0], qualities[1], qualities[-1]) == (93, 89, 23)


@pytest.mark.parametrize(
    ("expand", "zero", "steps", "gray"), [(RangeExpander.luma(), 16, 219, 0), (RangeExpander.chroma(), 128, 224, 128)]
)
def test_every_value_is_expanded_to_full_range_and_rounded(
    expand: RangeExpander, zero: int, steps: int, gray: int
) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(2, 128)
    expected = np.clip(np.round((values.astype(float) - zero) * 255 / steps + gray), 0, 255)
    np.testing.assert_array_equal(expand(values), expected)
    # Another shape, and rows that are not contiguous in memory.
    np.testing.assert_array_equal(expand(values[:, 3:90]), expected[:, 3:90])
