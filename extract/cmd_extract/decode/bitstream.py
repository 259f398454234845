"""Checks of H.264 and MPEG-4 Part 2 bitstreams from their headers, without decoding.

The source's own motion vectors are as good as those of a canonical stream if its I-frames are at most one GOP apart, it
has no B-frames, each frame references only the previous one, and all pictures are whole (no fields), of one size and
start at the coded corner. The headers of slices, VOPs, layers and sequences contain all of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cmd_extract.decode.headers import (
    IDR_NAL,
    SequenceParameters,
    SliceHeader,
    parse_sequence,
    parse_slice,
    parse_slice_type,
    parse_video_object_layers,
)
from cmd_extract.errors import BitstreamError

_VOP_START = b"\x00\x00\x01\xb6"
_VOP_TYPES = "IPBS"
_SLICE_NALS = (1, IDR_NAL)
_SPS_NAL = 7


def mpeg4_mismatch(packets: Iterable[bytes], extradata: bytes, gop: int) -> str | None:
    """Return how an MPEG-4 Part 2 stream differs from a canonical one; None if it does not.

    Args:
        packets: one frame each.
        extradata: headers stored in the container, or empty.
        gop: maximum distance between I-frames, in frames.
    """
    types = []
    try:
        layers = set(parse_video_object_layers(extradata))
        for packet in packets:
            head, *vops = packet.split(_VOP_START)
            if len(vops) != 1 or not vops[0]:
                return "a packet does not contain exactly one frame"
            if head:
                layers.update(parse_video_object_layers(head))
            types.append(_VOP_TYPES[vops[0][0] >> 6])
    except BitstreamError as error:
        return f"its headers are damaged ({error})"
    if len(layers) != 1:
        return "its parameters change within the stream" if layers else "it has no video object layer"
    (layer,) = layers
    if layer.interlaced:
        return "it may be interlaced"
    if layer.global_motion:
        return "it may use global motion"
    return _frame_type_mismatch(types, gop)


def h264_mismatch(packets: Iterable[bytes], extradata: bytes, gop: int) -> str | None:
    """Return how an H.264 stream differs from a canonical one; None if it does not.

    Args:
        packets: one coded picture each.
        extradata: parameter sets stored in the container as ``avcC`` or Annex B, or empty.
        gop: maximum distance between I-frames, in frames.
    """
    length_bytes = nal_length_bytes(extradata)
    sequences = [parse_sequence(nal) for nal in _extradata_nals(extradata) if nal[0] & 31 == _SPS_NAL]
    types: list[str] = []
    previous: SliceHeader | None = None
    in_order = True
    try:
        for packet in packets:
            slices: list[SliceHeader] = []
            for nal in _nals(packet, length_bytes):
                nal_type = nal[0] & 31
                if nal_type == _SPS_NAL:
                    sequences.append(parse_sequence(nal))
                elif nal_type in _SLICE_NALS:
                    if not sequences:
                        return "it has no sequence parameter set"
                    slices.append(parse_slice(nal, sequences[-1]))
            types.append("".join(sorted({part.slice_type for part in slices})))
            if previous is not None and slices and not _follows(slices[0], previous, sequences[-1]):
                in_order = False
            previous = slices[0] if slices else None
    except (BitstreamError, IndexError) as error:
        return f"its headers are damaged ({error})"
    if not sequences:
        return "it has no sequence parameter set"
    if len(set(sequences)) > 1:
        return "its parameters change within the stream"
    (sequence,) = set(sequences)
    if sequence.references > 1:
        return f"it may use {sequence.references} reference frames"
    if not sequence.whole_frames:
        return "it may be interlaced"
    if sequence.cropped_at_start:
        return "its picture is cropped at the left or top"
    mismatch = _frame_type_mismatch(types, gop)
    if mismatch is None and not in_order:
        return "its frames reference another than the previous frame, or are reordered for display"
    return mismatch


def nal_length_bytes(extradata: bytes) -> int:
    """Return the size in bytes of the length before each NAL unit of H.264 packets; 0 for start codes (Annex B)."""
    return (extradata[4] & 3) + 1 if len(extradata) > 6 and extradata[0] == 1 else 0


def mixed_picture_type(packet: bytes, length_bytes: int) -> str | None:
    """Return the type (``P`` or ``B``) of an H.264 picture whose first slice is an I-slice but not all others are.

    FFmpeg reports such a picture as an I-frame, since it looks at the first slice only.

    Args:
        packet: one coded picture.
        length_bytes: result of ``nal_length_bytes``.

    Returns:
        None for all other pictures, and if headers are damaged.
    """
    try:
        slices = (nal for nal in _nals(packet, length_bytes) if nal[0] & 31 in _SLICE_NALS)
        first = next(slices, None)
        if first is None or first[0] & 31 == IDR_NAL or parse_slice_type(first) != "I":
            return None
        others = {parse_slice_type(nal) for nal in slices}
    except (BitstreamError, IndexError):
        return None
    return next((slice_type for slice_type in "BP" if slice_type in others), None)


def _follows(current: SliceHeader, previous: SliceHeader, sequence: SequenceParameters) -> bool:
    """Return whether a frame can reference only the previous frame, which is also displayed before it.

    Since there is one reference frame, a frame kept as reference replaces all others, including long-term ones.
    """
    if current.idr:
        return True
    if current.display_order is not None and previous.display_order is not None:
        step = (current.display_order - previous.display_order) % (1 << sequence.display_order_bits)
        if not 0 < step < 1 << (sequence.display_order_bits - 1):
            return False
    gap = (current.frame_number - previous.frame_number) % (1 << sequence.frame_number_bits)
    return current.slice_type == "I" or (previous.is_reference and gap == 1)


def _frame_type_mismatch(types: list[str], gop: int) -> str | None:
    unsupported = sorted({frame_type for frame_type in types if frame_type not in ("I", "P")})
    if unsupported:
        return f"it has frames of type {', '.join(unsupported) or 'unknown'}"
    since_keyframe = gop
    for frame_type in types:
        since_keyframe = 0 if frame_type == "I" else since_keyframe + 1
        if since_keyframe >= gop:
            return f"its I-frames are more than {gop} frames apart"
    return None


def _extradata_nals(extradata: bytes) -> Iterator[bytes]:
    if not (len(extradata) > 6 and extradata[0] == 1):
        yield from _nals(extradata, 0)
        return
    at = 6
    for _ in range(extradata[5] & 31):
        size = int.from_bytes(extradata[at : at + 2], "big")
        if size:
            yield extradata[at + 2 : at + 2 + size]
        at += 2 + size


def _nals(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """Yield the NAL units of a packet, separated by their lengths or, if ``length_bytes`` is 0, by start codes."""
    if length_bytes == 0:
        yield from (part for part in data.split(b"\x00\x00\x01")[1:] if part)
        return
    at = 0
    while at + length_bytes < len(data):
        size = int.from_bytes(data[at : at + length_bytes], "big")
        at += length_bytes
        if size == 0 or at + size > len(data):
            raise BitstreamError("a NAL unit is longer than its packet")
        yield data[at : at + size]
        at += size
