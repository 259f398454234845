"""What makes a stream unlike a canonical one, told from its headers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import pytest

from cmd_extract.decode.bitstream import _follows, h264_problem, mpeg4_problem
from cmd_extract.decode.headers import SequenceFacts, SliceFacts, parse_slice_type

MakeVideo = Callable[..., Path]
PLAIN = ("-c:v", "libx264", "-bf", "0", "-refs", "1", "-g", "12")
MPEG4 = ("-c:v", "mpeg4", "-bf", "0", "-g", "12")


def packets_of(path: Path) -> tuple[list[bytes], bytes]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [bytes(p) for p in container.demux(stream) if p.size], stream.codec_context.extradata or b""


def without_reference(packet: bytes) -> bytes:
    """The same picture, said to be no reference."""
    units = packet.split(b"\0\0\1")
    return b"\0\0\1".join(bytes([u[0] & 0x9F]) + u[1:] if u and u[0] & 31 == 1 else u for u in units)


def test_h264_frames_may_refer_to_the_one_before_only(make_video: MakeVideo, tmp_path: Path) -> None:
    packets, extradata = packets_of(make_video(tmp_path / "a.h264", *PLAIN, source="mandelbrot", frames=20))
    assert h264_problem(packets, extradata, 12) is None
    assert h264_problem([*packets[:11], without_reference(packets[11]), *packets[12:]], extradata, 12) is None, "I next"
    layers = [*packets[:5], without_reference(packets[5]), *packets[6:]]
    assert "refer to others" in str(h264_problem(layers, extradata, 12))
    assert "refer to others" in str(h264_problem(packets[:5] + packets[6:], extradata, 12)), "a frame is missing"


def test_h264_frames_must_be_shown_as_they_are_coded() -> None:
    sequence = SequenceFacts(
        size=(10, 8), references=1, whole_frames=True, cropped_at_start=False, number_bits=4, order_bits=6,
        separate_planes=False,
    )  # fmt: skip
    before = SliceFacts(kind="P", instant_refresh=False, reference=True, number=15, order=62)
    now = SliceFacts(kind="P", instant_refresh=False, reference=True, number=0, order=0)
    assert _follows(now, before, sequence), "both count on from 0"
    assert not _follows(replace(now, order=60), before, sequence)
    assert not _follows(replace(now, order=60, kind="I"), before, sequence)
    assert _follows(replace(now, order=0, number=0, instant_refresh=True), replace(before, reference=False), sequence)


def golomb(number: int) -> str:
    bits = f"{number + 1:b}"
    return "0" * (len(bits) - 1) + bits


@pytest.mark.parametrize("first_macroblock", [0, 1, 351, 8159])
@pytest.mark.parametrize("after", ["0", "1"])
def test_the_type_of_a_slice_is_read_wherever_it_begins(first_macroblock: int, after: str) -> None:
    for number in (*range(10), 15, 16, 31):  # those above 9 in damaged streams only
        bits = (golomb(first_macroblock) + golomb(number)).ljust(48, after)
        assert parse_slice_type(b"\x41" + int(bits, 2).to_bytes(6, "big")) == "PBISS"[number % 5], number


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((), None), (("-flags", "+ildct+ilme"), "interlaced"), (("-flags", "+qpel"), None),
        (("-mpeg_quant", "1"), None), (("-data_partitioning", "1"), None), (("-aspect", "4:3"), None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["avi", "mp4", "m4v"])
def test_mpeg4_layers(
    make_video: MakeVideo, tmp_path: Path, suffix: str, options: tuple[str, ...], problem: str | None
) -> None:
    packets, extradata = packets_of(make_video(tmp_path / f"a.{suffix}", *MPEG4, *options, frames=14))
    assert problem == mpeg4_problem(packets, extradata, 12) or problem in mpeg4_problem(packets, extradata, 12)


def test_mpeg4_whose_size_changes(make_video: MakeVideo, tmp_path: Path) -> None:
    raw = (*MPEG4, "-f", "m4v")
    small, large = (make_video(tmp_path / s, *raw, size=s, frames=5).read_bytes() for s in ("160x120", "176x144"))
    (tmp_path / "both.m4v").write_bytes(small + large)
    packets, extradata = packets_of(tmp_path / "both.m4v")
    assert mpeg4_problem(packets[:5], extradata, 12) is None
    assert mpeg4_problem(packets, extradata, 12) == "its parameters change on the way"
    assert mpeg4_problem([p[p.index(b"\0\0\1\xb6") :] for p in packets[:5]], b"", 12) == "it has no video object layer"
