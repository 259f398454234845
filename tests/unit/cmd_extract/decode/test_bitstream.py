"""Detection, from headers alone, of streams that differ from a canonical one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import pytest

from cmd_extract.decode.bitstream import _follows, h264_mismatch, mpeg4_mismatch
from cmd_extract.decode.headers import SequenceParameters, SliceHeader, parse_slice_type

MakeVideo = Callable[..., Path]
PLAIN = ("-c:v", "libx264", "-bf", "0", "-refs", "1", "-g", "12")
MPEG4 = ("-c:v", "mpeg4", "-bf", "0", "-g", "12")


def packets_of(path: Path) -> tuple[list[bytes], bytes]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [bytes(p) for p in container.demux(stream) if p.size], stream.codec_context.extradata or b""


def as_non_reference(packet: bytes) -> bytes:
    """Return the same picture, marked as not used for reference."""
    units = packet.split(b"\0\0\1")
    return b"\0\0\1".join(bytes([u[0] & 0x9F]) + u[1:] if u and u[0] & 31 == 1 else u for u in units)


def test_h264_frames_may_reference_only_the_previous_frame(make_video: MakeVideo, tmp_path: Path) -> None:
    packets, extradata = packets_of(make_video(tmp_path / "a.h264", *PLAIN, source="mandelbrot", frames=20))
    assert h264_mismatch(packets, extradata, 12) is None
    before_keyframe = [*packets[:11], as_non_reference(packets[11]), *packets[12:]]
    assert h264_mismatch(before_keyframe, extradata, 12) is None
    layers = [*packets[:5], as_non_reference(packets[5]), *packets[6:]]
    assert "reference another" in str(h264_mismatch(layers, extradata, 12))
    assert "reference another" in str(h264_mismatch(packets[:5] + packets[6:], extradata, 12)), "a frame is missing"


def test_h264_display_order_must_equal_coding_order() -> None:
    sequence = SequenceParameters(
        size=(10, 8), references=1, whole_frames=True, cropped_at_start=False, frame_number_bits=4,
        display_order_bits=6, separate_planes=False,
    )  # fmt: skip
    previous = SliceHeader(slice_type="P", idr=False, is_reference=True, frame_number=15, display_order=62)
    current = SliceHeader(slice_type="P", idr=False, is_reference=True, frame_number=0, display_order=0)
    assert _follows(current, previous, sequence), "both counters wrap around to 0"
    assert not _follows(replace(current, display_order=60), previous, sequence)
    assert not _follows(replace(current, display_order=60, slice_type="I"), previous, sequence)
    assert _follows(replace(current, idr=True), replace(previous, is_reference=False), sequence)


def golomb(number: int) -> str:
    bits = f"{number + 1:b}"
    return "0" * (len(bits) - 1) + bits


@pytest.mark.parametrize("first_macroblock", [0, 1, 351, 8159])
@pytest.mark.parametrize("padding", ["0", "1"])
def test_slice_type_at_any_first_macroblock(first_macroblock: int, padding: str) -> None:
    for number in (*range(10), 15, 16, 31):  # numbers above 9 occur in damaged streams only
        bits = (golomb(first_macroblock) + golomb(number)).ljust(48, padding)
        assert parse_slice_type(b"\x41" + int(bits, 2).to_bytes(6, "big")) == "PBISS"[number % 5], number


@pytest.mark.parametrize(
    ("options", "mismatch"),
    [
        ((), None), (("-flags", "+ildct+ilme"), "interlaced"), (("-flags", "+qpel"), None),
        (("-mpeg_quant", "1"), None), (("-data_partitioning", "1"), None), (("-aspect", "4:3"), None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["avi", "mp4", "m4v"])
def test_mpeg4_layers(
    make_video: MakeVideo, tmp_path: Path, suffix: str, options: tuple[str, ...], mismatch: str | None
) -> None:
    packets, extradata = packets_of(make_video(tmp_path / f"a.{suffix}", *MPEG4, *options, frames=14))
    found = mpeg4_mismatch(packets, extradata, 12)
    assert found is None if mismatch is None else mismatch in str(found)


def test_mpeg4_with_changing_size(make_video: MakeVideo, tmp_path: Path) -> None:
    raw = (*MPEG4, "-f", "m4v")
    small, large = (make_video(tmp_path / s, *raw, size=s, frames=5).read_bytes() for s in ("160x120", "176x144"))
    (tmp_path / "both.m4v").write_bytes(small + large)
    packets, extradata = packets_of(tmp_path / "both.m4v")
    assert mpeg4_mismatch(packets[:5], extradata, 12) is None
    assert mpeg4_mismatch(packets, extradata, 12) == "its parameters change within the stream"
    assert mpeg4_mismatch([p[p.index(b"\0\0\1\xb6") :] for p in packets[:5]], b"", 12) == "it has no video object layer"
