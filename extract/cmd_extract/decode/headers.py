"""Reads the headers of H.264 and MPEG-4 Part 2 bit by bit, as far as ``bitstream`` needs them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from cmd_extract.errors import BitstreamError

_LAYER_START = re.compile(rb"\x00\x00\x01[\x20-\x2f]")
_LAYER_BYTES = 192  # with both quantiser matrices
_SLICE_TYPES = "PBISS"
_REFRESH_NAL = 5
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
_HEADER_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class SequenceFacts:
    """What an H.264 sequence parameter set says.

    Attributes:
        size: width and height in macroblocks.
        references: most frames that a frame may refer to.
        whole_frames: whether there are no fields.
        cropped_at_start: whether the picture begins right of or below the coded corner.
        number_bits, order_bits: lengths of the number and, 0 if there is none, of the place in the order of
            presentation that each frame states.
        separate_planes: whether colour planes are coded as pictures of their own.
    """

    size: tuple[int, int]
    references: int
    whole_frames: bool
    cropped_at_start: bool
    number_bits: int
    order_bits: int
    separate_planes: bool


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """What an MPEG-4 video object layer says: its size in pixels, and tools that it may use."""

    size: tuple[int, int]
    interlaced: bool
    global_motion: bool
    quarter_pel: bool


@dataclass(frozen=True, kw_only=True)
class SliceFacts:
    """What the head of an H.264 slice says; ``order`` is None where the sequence has none."""

    kind: str
    instant_refresh: bool
    reference: bool
    number: int
    order: int | None


class _Bits:
    """Reads a header bit by bit."""

    def __init__(self, payload: bytes) -> None:
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


def _payload(nal: bytes) -> bytes:
    """The head of a NAL unit, without the bytes that only keep start codes apart."""
    return nal[1:_HEADER_BYTES].replace(b"\x00\x00\x03", b"\x00\x00")


def parse_slice_type(nal: bytes) -> str:
    """``P``, ``B``, ``I`` or ``S``, of a NAL unit that holds a slice; raises as ``parse_slice``."""
    # Of nearly all pictures the first slice begins at macroblock 0, which is one bit, 1; the type has 1 to 7 bits.
    if len(nal) > 1 and nal[1] & 0x80 and nal[1] & 0x78:
        return _type_in_one_byte(nal[1])
    return _slice_type(_Bits(_payload(nal)))


@cache
def _type_in_one_byte(byte: int) -> str:
    return _slice_type(_Bits(bytes([byte])))


def _slice_type(bits: _Bits) -> str:
    bits.golomb()  # first macroblock
    return _SLICE_TYPES[bits.golomb() % 5]


def parse_slice(nal: bytes, sequence: SequenceFacts) -> SliceFacts:
    """Of a NAL unit that holds a slice.

    Raises:
        BitstreamError: it is too short.
    """
    bits = _Bits(_payload(nal))
    kind = _slice_type(bits)
    bits.golomb()  # picture parameter set
    if sequence.separate_planes:
        bits.take(2)
    number = bits.take(sequence.number_bits)
    refresh = nal[0] & 31 == _REFRESH_NAL
    order = None
    if sequence.whole_frames and sequence.order_bits:
        if refresh:
            bits.golomb()  # identifier
        order = bits.take(sequence.order_bits)
    return SliceFacts(kind=kind, instant_refresh=refresh, reference=bool(nal[0] >> 5 & 3), number=number, order=order)


def parse_layers(data: bytes) -> Iterator[LayerFacts]:
    """The video object layers of some MPEG-4 headers.

    Raises:
        BitstreamError: one is too short, or is not of rectangular pictures.
    """
    for match in _LAYER_START.finditer(data):
        yield _parse_layer(_Bits(data[match.end() : match.end() + _LAYER_BYTES]))


def _parse_layer(bits: _Bits) -> LayerFacts:
    bits.take(9)  # random access, object type
    version = 1
    if bits.take(1):
        version = bits.take(4)
        bits.take(3)
    if bits.take(4) == 15:  # pixel shape
        bits.take(16)
    if bits.take(1):  # chroma format, delay, buffer
        bits.take(3)
        if bits.take(1):
            bits.take(79)
    if bits.take(2) != 0:
        raise BitstreamError("its pictures are no rectangles")
    bits.take(1)
    resolution = bits.take(16)
    bits.take(1)
    if bits.take(1):  # fixed frame rate
        bits.take(max(1, (resolution - 1).bit_length()))
    bits.take(1)
    width = bits.take(14) >> 1
    height = bits.take(14) >> 1
    interlaced = bool(bits.take(1))
    bits.take(1)
    global_motion = bits.take(1 if version == 1 else 2) != 0
    if global_motion:
        return LayerFacts(size=(width, height), interlaced=interlaced, global_motion=True, quarter_pel=False)
    if bits.take(1):  # other than 8 bits
        bits.take(8)
    if bits.take(1):
        for _ in ("intra", "inter"):
            if bits.take(1):  # a matrix, which may end early
                any(bits.take(8) == 0 for _ in range(64))
    quarter_pel = version != 1 and bool(bits.take(1))
    return LayerFacts(size=(width, height), interlaced=interlaced, global_motion=False, quarter_pel=quarter_pel)


def parse_sequence(nal: bytes) -> SequenceFacts:
    """Of a NAL unit that holds a sequence parameter set.

    Raises:
        BitstreamError: it is too short, or uses what is not known here.
    """
    bits = _Bits(_payload(nal))
    profile = bits.take(8)
    bits.take(16)  # constraints and level
    bits.golomb()  # identifier
    separate_planes = False
    if profile in _HIGH_PROFILES:
        if bits.golomb() == 3:  # chroma format
            separate_planes = bool(bits.take(1))
        bits.golomb(), bits.golomb()  # bit depths
        bits.take(1)
        if bits.take(1):
            raise BitstreamError("scaling lists are not supported")
    number_bits = bits.golomb() + 4
    order, order_bits = bits.golomb(), 0
    if order == 0:
        order_bits = bits.golomb() + 4
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
        size=size,
        references=references,
        whole_frames=whole_frames,
        cropped_at_start=bool(left or top),
        number_bits=number_bits,
        order_bits=order_bits,
        separate_planes=separate_planes,
    )
