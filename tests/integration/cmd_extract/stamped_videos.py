"""Small videos whose packets have any time stamps that a test asks for."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av

FRAMES = 24
SIZE = (64, 48)
_VIDEO_TAG, _AVC_PICTURE = 9, 1
_VOP_START = b"\x00\x00\x01\xb6"
_NOT_CODED_VOP = _VOP_START + b"\x50\x00\x00"


def packets_of(source: Path) -> list[bytes]:
    """Return the packets of a video, in decoding order."""
    with av.open(str(source)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def restamp(source: Path, target: Path, stamps: Sequence[int], base: Fraction = Fraction(1, 90_000)) -> Path:
    """Copy a video without B-frames; frame n gets ``stamps[n]``, in ticks of ``base``, which must increase."""
    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        stream.time_base = base
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for packet, stamp in zip(packets, stamps, strict=True):
            packet.stream, packet.time_base = stream, base
            packet.pts = packet.dts = stamp
            output.mux(packet)
    return target


def restamp_flv(source: Path, target: Path, milliseconds: Sequence[int]) -> Path:
    """Copy an FLV without B-frames; frame n gets ``milliseconds[n]``, in any order. Muxers would refuse some."""
    data = bytearray(source.read_bytes())
    at, number = 9 + 4, 0
    while at < len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        if data[at] == _VIDEO_TAG and data[at + 12] == _AVC_PICTURE:
            stamp = milliseconds[number]
            data[at + 4 : at + 7] = (stamp & 0xFFFFFF).to_bytes(3, "big")
            data[at + 7] = stamp >> 24
            number += 1
        at += 11 + size + 4
    assert number == len(milliseconds)
    target.write_bytes(data)
    return target


def pack_b_frames(source: Path, target: Path) -> Path:
    """Copy an MPEG-4 AVI with single B-frames as DivX writes it: each B-frame in the packet of the frame after it.

    An empty packet takes its place. The user data tells decoders so.
    """
    packets = packets_of(source)
    marked = packets[0].replace(_VOP_START, b"\x00\x00\x01\xb2DivX503b1393p" + _VOP_START, 1)
    packed = [marked]
    for first, second in zip(packets[1::2], packets[2::2], strict=True):
        packed += [first + second, _NOT_CODED_VOP]
    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        for number, data in enumerate(packed):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 30)
            packet.dts = packet.pts = number
            packet.duration = 1
            output.mux(packet)
    return target
