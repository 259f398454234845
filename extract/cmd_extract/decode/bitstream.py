"""Tells from a stream's headers, without decoding, whether its own motion vectors can be used as they are.

That needs no B-frames, no reference but the frame before, an I-frame at least every so many frames, whole pictures (no
fields) of one size that begin at the coded corner: all of which H.264 and MPEG-4 Part 2 write in the headers of slices,
VOPs, layers and sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cmd_extract.decode.headers import (
    SequenceFacts,
    SliceFacts,
    parse_layers,
    parse_sequence,
    parse_slice,
    parse_slice_type,
)
from cmd_extract.errors import BitstreamError

_VOP_START = b"\x00\x00\x01\xb6"
_VOP_TYPES = "IPBS"
_SLICE_NALS = (1, 5)
_REFRESH_NAL = 5
_SPS_NAL = 7


def mpeg4_problem(packets: Iterable[bytes], extradata: bytes, gop: int) -> str | None:
    """Why the vectors of an MPEG-4 Part 2 stream cannot be used as they are; None if they can.

    Args:
        packets: one frame each.
        extradata: the container's headers, or nothing.
        gop: greatest distance of I-frames in frames.
    """
    types = []
    try:
        layers = set(parse_layers(extradata))
        for packet in packets:
            head, *vops = packet.split(_VOP_START)
            if len(vops) != 1 or not vops[0]:
                return "its packets hold several frames or none"
            if head:
                layers.update(parse_layers(head))
            types.append(_VOP_TYPES[vops[0][0] >> 6])
    except BitstreamError as error:
        return f"its headers are damaged ({error})"
    if len(layers) != 1:
        return "its parameters change on the way" if layers else "it has no video object layer"
    (layer,) = layers
    if layer.interlaced:
        return "it may be interlaced"
    if layer.global_motion:
        return "it may use global motion"
    return _types_problem(types, gop)


def h264_problem(packets: Iterable[bytes], extradata: bytes, gop: int) -> str | None:
    """Why the vectors of an H.264 stream cannot be used as they are; None if they can.

    Args:
        packets: one coded picture each.
        extradata: the container's parameter sets; ``avcC``, Annex B or nothing.
        gop: greatest distance of I-frames in frames.
    """
    length_bytes = unit_length_bytes(extradata)
    sequences = [parse_sequence(nal) for nal in _extradata_units(extradata) if nal[0] & 31 == _SPS_NAL]
    types: list[str] = []
    before: SliceFacts | None = None
    in_order = True
    try:
        for packet in packets:
            slices: list[SliceFacts] = []
            for nal in _units(packet, length_bytes):
                kind = nal[0] & 31
                if kind == _SPS_NAL:
                    sequences.append(parse_sequence(nal))
                elif kind in _SLICE_NALS:
                    if not sequences:
                        return "it has no sequence parameter set"
                    slices.append(parse_slice(nal, sequences[-1]))
            types.append("".join(sorted({part.kind for part in slices})))
            if before is not None and slices and not _follows(slices[0], before, sequences[-1]):
                in_order = False
            before = slices[0] if slices else None
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
    problem = _types_problem(types, gop)
    if problem is None and not in_order:
        return "its frames refer to others than the one before, or are shown in another order"
    return problem


def unit_length_bytes(extradata: bytes) -> int:
    """Bytes of the length before each NAL unit of H.264 packets; 0 if start codes keep units apart."""
    return (extradata[4] & 3) + 1 if len(extradata) > 6 and extradata[0] == 1 else 0


def mixed_picture(packet: bytes, length_bytes: int) -> str | None:
    """The type (``P`` or ``B``) of an H.264 picture that begins with an I-slice but has slices of others as well.

    FFmpeg calls it an I-frame, since it looks at the first slice only. None for all others, and where headers are
    damaged.
    """
    try:
        slices = (nal for nal in _units(packet, length_bytes) if nal[0] & 31 in _SLICE_NALS)
        first = next(slices, None)
        if first is None or first[0] & 31 == _REFRESH_NAL or parse_slice_type(first) != "I":
            return None
        others = {parse_slice_type(nal) for nal in slices}
    except (BitstreamError, IndexError):
        return None
    return next((kind for kind in "BP" if kind in others), None)


def _follows(now: SliceFacts, before: SliceFacts, sequence: SequenceFacts) -> bool:
    """Whether a frame can refer to none but the one before it, which is also shown before it.

    There is one reference, so a frame that is kept as reference takes the place of all others, long-term ones included.
    """
    if now.instant_refresh:
        return True
    if now.order is not None and before.order is not None:
        later = (now.order - before.order) % (1 << sequence.order_bits)
        if not 0 < later < 1 << (sequence.order_bits - 1):
            return False
    gap = (now.number - before.number) % (1 << sequence.number_bits)
    return now.kind == "I" or (before.reference and gap == 1)


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
