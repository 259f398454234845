"""Tells from a stream's headers, without decoding, whether its own motion vectors can be used as they are.

That needs no B-frames, one reference, an I-frame at least every so many frames, whole pictures (no fields) that begin
at the coded corner: all of which H.264 and MPEG-4 Part 2 write in their slice, VOP and parameter set headers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_VOP_START = b"\x00\x00\x01\xb6"
_VOP_TYPES = "IPBS"
_SLICE_TYPES = "PBISS"
_SLICE_NALS = (1, 5)
_SPS_NAL = 7
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
_HEADER_BYTES = 64


class BitstreamError(ValueError):
    """A header that does not say what it should."""


@dataclass(frozen=True, kw_only=True)
class SequenceFacts:
    """What an H.264 sequence parameter set says.

    Attributes:
        size: width and height in macroblocks.
        references: most frames that a frame may refer to.
        whole_frames: whether there are no fields.
        cropped_at_start: whether the picture begins right of or below the coded corner.
    """

    size: tuple[int, int]
    references: int
    whole_frames: bool
    cropped_at_start: bool


def mpeg4_problem(packets: Iterable[bytes], gop: int) -> str | None:
    """Why the vectors of an MPEG-4 Part 2 stream cannot be used as they are; None if they can."""
    types = []
    for packet in packets:
        vops = packet.split(_VOP_START)[1:]
        if len(vops) != 1 or not vops[0]:
            return "its packets hold several frames or none"
        types.append(_VOP_TYPES[vops[0][0] >> 6])
    return _types_problem(types, gop)


def h264_problem(packets: Iterable[bytes], extradata: bytes, gop: int) -> str | None:
    """Why the vectors of an H.264 stream cannot be used as they are; None if they can.

    Args:
        packets: one coded picture each.
        extradata: the container's parameter sets; ``avcC``, Annex B or nothing.
        gop: greatest distance of I-frames in frames.
    """
    length_bytes = (extradata[4] & 3) + 1 if len(extradata) > 6 and extradata[0] == 1 else 0
    sequences = [_parse_sequence(nal) for nal in _extradata_units(extradata) if nal[0] & 31 == _SPS_NAL]
    types = []
    try:
        for packet in packets:
            slices = set()
            for nal in _units(packet, length_bytes):
                kind = nal[0] & 31
                if kind == _SPS_NAL:
                    sequences.append(_parse_sequence(nal))
                elif kind in _SLICE_NALS:
                    slices.add(_slice_type(nal))
            types.append("".join(sorted(slices)))
    except (BitstreamError, IndexError) as error:
        return f"its headers are damaged ({error})"
    if not sequences:
        return "it has no sequence parameter set"
    if len(set(sequences)) > 1:
        return "its parameters change on the way"
    for sequence in sequences:
        if sequence.references > 1:
            return f"it may use {sequence.references} references"
        if not sequence.whole_frames:
            return "it may be interlaced"
        if sequence.cropped_at_start:
            return "its picture is cropped at the left or top"
    return _types_problem(types, gop)


def _types_problem(types: list[str], gop: int) -> str | None:
    odd = sorted({kind for kind in types if kind not in ("I", "P")})
    if odd:
        return f"it has frames of type {', '.join(odd) or 'unknown'}"
    since = gop
    for kind in types:
        since = 0 if kind == "I" else since + 1
        if since >= gop:
            return f"its I-frames are more than {gop} frames apart"
    return None


def _extradata_units(extradata: bytes) -> Iterator[bytes]:
    if not (len(extradata) > 6 and extradata[0] == 1):
        yield from _units(extradata, 0)
        return
    at = 6
    for _ in range(extradata[5] & 31):
        size = int.from_bytes(extradata[at : at + 2], "big")
        if size:
            yield extradata[at + 2 : at + 2 + size]
        at += 2 + size


def _units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """NAL units of a packet, by their lengths or, if ``length_bytes`` is 0, by start codes."""
    if length_bytes == 0:
        yield from (part for part in data.split(b"\x00\x00\x01")[1:] if part)
        return
    at = 0
    while at + length_bytes < len(data):
        size = int.from_bytes(data[at : at + length_bytes], "big")
        at += length_bytes
        if size == 0 or at + size > len(data):
            raise BitstreamError("a unit is longer than its packet")
        yield data[at : at + size]
        at += size


class _Bits:
    """Reads a NAL unit's payload bit by bit."""

    def __init__(self, nal: bytes) -> None:
        payload = nal[1:_HEADER_BYTES].replace(b"\x00\x00\x03", b"\x00\x00")
        self._value = int.from_bytes(payload, "big")
        self._left = 8 * len(payload)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise BitstreamError("a header is too short")
        return self._value >> self._left & ((1 << count) - 1)

    def golomb(self) -> int:
        zeros = 0
        while self.take(1) == 0:
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def _slice_type(nal: bytes) -> str:
    bits = _Bits(nal)
    bits.golomb()  # first macroblock
    return _SLICE_TYPES[bits.golomb() % 5]


def _parse_sequence(nal: bytes) -> SequenceFacts:
    bits = _Bits(nal)
    profile = bits.take(8)
    bits.take(16)  # constraints and level
    bits.golomb()  # identifier
    if profile in _HIGH_PROFILES:
        if bits.golomb() == 3:  # chroma format
            bits.take(1)
        bits.golomb(), bits.golomb()  # bit depths
        bits.take(1)
        if bits.take(1):
            raise BitstreamError("scaling lists are not supported")
    bits.golomb()  # frame number length
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        raise BitstreamError("picture order type 1 is not supported")
    references = bits.golomb()
    bits.take(1)
    size = (bits.golomb() + 1, bits.golomb() + 1)
    whole_frames = bool(bits.take(1))
    if not whole_frames:
        bits.take(1)
    bits.take(1)
    left = top = 0
    if bits.take(1):
        left, _, top, _ = (bits.golomb() for _ in range(4))
    return SequenceFacts(
        size=size, references=references, whole_frames=whole_frames, cropped_at_start=bool(left or top)
    )
