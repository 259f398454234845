"""The source's own motion vectors: deciding whether they are used, and reading them.

The alternative is a canonical stream that FFmpeg encodes from the source, see ``cmd_extract.decode.transcode``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import av
import av.error

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.bitstream import h264_mismatch, mpeg4_mismatch
from cmd_extract.decode.keyframes import KeyframeEncoder
from cmd_extract.decode.source import SourceInfo, decoder_errors, open_input
from cmd_extract.decode.spool import MotionStream, VideoSpool, spool_motion
from cmd_extract.decode.vectors import SourceStream, read_vectors
from cmd_extract.errors import VideoError

CODECS_WITH_VECTORS = ("h264", "mpeg4")
"""Codecs whose motion vectors FFmpeg exports. It decodes HEVC, VP9 and AV1 as well, but silently exports none."""


def use_own_vectors(source: Path, info: SourceInfo, config: ExtractConfig) -> bool:
    """Return whether to use the source's own motion vectors.

    Args:
        source: the video file. With ``--transcode auto`` the headers of all its packets are read and one frame is
            decoded.
        info: result of ``probe``.
        config: the ``transcode`` mode, the size shared by all videos, and the GOP length.

    Raises:
        VideoError: stage ``motion``; ``--transcode never`` was given and the source has no usable vectors.
    """
    if config.transcode == "always":
        return False
    problem = _why_unusable(info, config)
    if config.transcode == "never":
        if problem is not None:
            raise VideoError("motion", f"{problem}; extract it with --transcode auto or always")
        return True
    return problem is None and _why_not_canonical(source, info, config) is None


def read_own_stream(
    source: Path, info: SourceInfo, config: ExtractConfig, spool: VideoSpool
) -> tuple[MotionStream, bool]:
    """Read the source's own vectors and keyframes into ``spool``.

    With ``--transcode never`` a damaged source is read a second time, now decoding every picture: concealment borrows
    from pictures that are otherwise skipped. With ``auto`` there is no need, since damaged sources are transcoded.

    Returns:
        The stream, and whether it is damaged.
    """
    for decode_all_pictures in (False, True):
        damage_reports: list[bool] = []
        stream = SourceStream(
            index=info.stream_index,
            size=(config.width, config.height),
            encode_keyframe=KeyframeEncoder(config.jpeg_quality),
            decode_all_pictures=decode_all_pictures,
            on_damage=partial(damage_reports.append, True),
        )
        with decoder_errors() as error_count:
            motion = spool_motion(read_vectors(source, "pyav", stream), config, spool)
            damaged = bool(damage_reports) or error_count() > 0
        if not damaged or config.transcode == "auto":
            break
    return motion, damaged


def _why_unusable(info: SourceInfo, config: ExtractConfig) -> str | None:
    if info.codec not in CODECS_WITH_VECTORS:
        return f"no motion vectors available for codec {info.codec}"
    if (info.width, info.height) != (config.width, config.height):
        size = f"{config.width}x{config.height}"
        return f"its size {info.width}x{info.height} is not the --size {size} that all videos of a run share"
    return None


def _why_not_canonical(source: Path, info: SourceInfo, config: ExtractConfig) -> str | None:
    """Return how the source differs from a canonical stream; None if its vectors are equally good."""
    try:
        with open_input(source) as container:
            stream = container.streams[info.stream_index]
            assert isinstance(stream, av.VideoStream), "selected by probe"
            if _is_rotated(source, info):
                return "the container requests rotation"
            mismatch = mpeg4_mismatch if info.codec == "mpeg4" else h264_mismatch
            return mismatch(_packets(container, stream), stream.codec_context.extradata or b"", config.gop)
    except (av.error.FFmpegError, ValueError) as error:
        return f"it is damaged ({error})"


def _is_rotated(source: Path, info: SourceInfo) -> bool:
    # PyAV reports the rotation only with decoded frames; one is enough.
    with open_input(source) as container:
        for frame in container.decode(container.streams[info.stream_index]):
            return isinstance(frame, av.VideoFrame) and frame.rotation != 0
    return False


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[bytes]:
    for packet in container.demux(stream):
        if packet.size:
            yield bytes(packet)
