"""Bit-level parsing of H.264 and MPEG-4 Part 2 headers, as far as ``cmd_extract.decode.bitstream`` needs them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from cmd_extract.errors import BitstreamError

IDR_NAL = 5
"""Type of the NAL units of an IDR picture, at which decoding can start."""

_LAYER_START = re.compile(rb"\x00\x00\x01[\x20-\x2f]")
_MAX_LAYER_BYTES = 192  # including both quantizer matrices
_SLICE_TYPES = "PBISS"
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
_MAX_HEADER_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class SequenceParameters:
    """An H.264 sequence parameter set.

    Attributes:
        size: width and height in macroblocks.
        references: maximum number of reference frames.
        whole_frames: whether there are no fields.
        cropped_at_start: whether the picture is cropped at the left or top.
        frame_number_bits: length of ``SliceHeader.frame_number``.
        display_order_bits: length of ``SliceHeader.display_order``, 0 if slices do not have it.
        separate_planes: whether color planes are coded as separate pictures.
    """

    size: tuple[int, int]
    references: int
    whole_frames: bool
    cropped_at_start: bool
    frame_number_bits: int
    display_order_bits: int
    separate_planes: bool


@dataclass(frozen=True, kw_only=True)
class SliceHeader:
    """The start of an H.264 slice header.

    Attributes:
        slice_type: ``P``, ``B``, ``I`` or ``S``.
        idr: whether the picture is an IDR picture.
        is_reference: whether later pictures may reference this one.
        frame_number: ``frame_num``.
        display_order: ``pic_order_cnt_lsb``, None if the sequence has none.
    """

    slice_type: str
    idr: bool
    is_reference: bool
    frame_number: int
    display_order: int | None


@dataclass(frozen=True, kw_only=True)
class VideoObjectLayer:
    """An MPEG-4 video object layer: its size in pixels and the coding tools that it may use."""

    size: tuple[int, int]
    interlaced: bool
    global_motion: bool
    quarter_pel: bool


class _BitReader:
    def __init__(self, payload: bytes) -> None:
        self._value = int.from_bytes(payload, "big")
        self._left = 8 * len(payload)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise BitstreamError("a header is too short")
        return self._value >> self._left & ((1 << count) - 1)

    def read_golomb(self) -> int:
        """Read an unsigned Exp-Golomb code."""
        zeros = 0
        while self.read(1) == 0:
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)


def _unescape(nal: bytes) -> bytes:
    """Return the start of a NAL unit's payload without emulation prevention bytes."""
    return nal[1:_MAX_HEADER_BYTES].replace(b"\x00\x00\x03", b"\x00\x00")


def parse_slice_type(nal: bytes) -> str:
    """Return the type ``P``, ``B``, ``I`` or ``S`` of a slice NAL unit.

    Raises:
        BitstreamError: the header is too short.
    """
    # The first slice of nearly every picture starts at macroblock 0, coded as a single 1 bit; its type has 1 to 7 bits.
    if len(nal) > 1 and nal[1] & 0x80 and nal[1] & 0x78:
        return _slice_type_from_byte(nal[1])
    return _read_slice_type(_BitReader(_unescape(nal)))


@cache
def _slice_type_from_byte(byte: int) -> str:
    return _read_slice_type(_BitReader(bytes([byte])))


def _read_slice_type(bits: _BitReader) -> str:
    bits.read_golomb()  # first_mb_in_slice
    return _SLICE_TYPES[bits.read_golomb() % 5]


def parse_slice(nal: bytes, sequence: SequenceParameters) -> SliceHeader:
    """Parse the header of a slice NAL unit.

    Raises:
        BitstreamError: the header is too short.
    """
    bits = _BitReader(_unescape(nal))
    slice_type = _read_slice_type(bits)
    bits.read_golomb()  # pic_parameter_set_id
    if sequence.separate_planes:
        bits.read(2)
    frame_number = bits.read(sequence.frame_number_bits)
    idr = nal[0] & 31 == IDR_NAL
    display_order = None
    if sequence.whole_frames and sequence.display_order_bits:
        if idr:
            bits.read_golomb()  # idr_pic_id
        display_order = bits.read(sequence.display_order_bits)
    return SliceHeader(
        slice_type=slice_type,
        idr=idr,
        is_reference=bool(nal[0] >> 5 & 3),
        frame_number=frame_number,
        display_order=display_order,
    )


def parse_sequence(nal: bytes) -> SequenceParameters:
    """Parse a sequence parameter set NAL unit.

    Raises:
        BitstreamError: it is too short or uses unsupported features.
    """
    bits = _BitReader(_unescape(nal))
    profile = bits.read(8)
    bits.read(16)  # constraint flags, level_idc
    bits.read_golomb()  # seq_parameter_set_id
    separate_planes = False
    if profile in _HIGH_PROFILES:
        if bits.read_golomb() == 3:  # chroma_format_idc
            separate_planes = bool(bits.read(1))
        bits.read_golomb(), bits.read_golomb()  # bit depths
        bits.read(1)
        if bits.read(1):
            raise BitstreamError("scaling lists are not supported")
    frame_number_bits = bits.read_golomb() + 4
    order_type, display_order_bits = bits.read_golomb(), 0
    if order_type == 0:
        display_order_bits = bits.read_golomb() + 4
    elif order_type == 1:
        raise BitstreamError("picture order count type 1 is not supported")
    references = bits.read_golomb()
    bits.read(1)
    size = (bits.read_golomb() + 1, bits.read_golomb() + 1)
    whole_frames = bool(bits.read(1))
    if not whole_frames:
        bits.read(1)
    bits.read(1)
    left = top = 0
    if bits.read(1):
        left, _, top, _ = (bits.read_golomb() for _ in range(4))
    return SequenceParameters(
        size=size,
        references=references,
        whole_frames=whole_frames,
        cropped_at_start=bool(left or top),
        frame_number_bits=frame_number_bits,
        display_order_bits=display_order_bits,
        separate_planes=separate_planes,
    )


def parse_video_object_layers(data: bytes) -> Iterator[VideoObjectLayer]:
    """Yield the video object layers in MPEG-4 headers.

    Raises:
        BitstreamError: a layer is too short or its shape is not rectangular.
    """
    for match in _LAYER_START.finditer(data):
        yield _parse_layer(_BitReader(data[match.end() : match.end() + _MAX_LAYER_BYTES]))


def _parse_layer(bits: _BitReader) -> VideoObjectLayer:
    bits.read(9)  # random access, object type
    version = 1
    if bits.read(1):
        version = bits.read(4)
        bits.read(3)
    if bits.read(4) == 15:  # extended pixel aspect ratio
        bits.read(16)
    if bits.read(1):  # chroma format, low delay, VBV parameters
        bits.read(3)
        if bits.read(1):
            bits.read(79)
    if bits.read(2) != 0:
        raise BitstreamError("the video object layer is not rectangular")
    bits.read(1)
    resolution = bits.read(16)
    bits.read(1)
    if bits.read(1):  # fixed VOP rate
        bits.read(max(1, (resolution - 1).bit_length()))
    bits.read(1)
    width = bits.read(14) >> 1
    height = bits.read(14) >> 1
    interlaced = bool(bits.read(1))
    bits.read(1)
    global_motion = bits.read(1 if version == 1 else 2) != 0
    if global_motion:
        return VideoObjectLayer(size=(width, height), interlaced=interlaced, global_motion=True, quarter_pel=False)
    if bits.read(1):  # not 8 bits per sample
        bits.read(8)
    if bits.read(1):
        for _ in ("intra", "inter"):
            if bits.read(1):  # a quantizer matrix, which may end early
                any(bits.read(8) == 0 for _ in range(64))
    quarter_pel = version != 1 and bool(bits.read(1))
    return VideoObjectLayer(size=(width, height), interlaced=interlaced, global_motion=False, quarter_pel=quarter_pel)
