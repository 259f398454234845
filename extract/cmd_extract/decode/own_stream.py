"""Decides whether a source's own motion vectors are used, or those of a canonical stream made from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import av.error

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.bitstream import h264_problem, mpeg4_problem
from cmd_extract.decode.source import SourceFacts, open_input
from cmd_extract.errors import VideoError

CODECS_WITH_VECTORS = ("h264", "mpeg4")
"""Others decode as well, but FFmpeg exports no vectors of HEVC, VP9, AV1, and says nothing."""


def use_own_vectors(source: Path, facts: SourceFacts, config: ExtractConfig) -> bool:
    """Whether to read the vectors of the source itself.

    Args:
        source: the video file; under ``auto`` its headers are read, and its first frame is decoded.
        facts: what ``probe`` has found.
        config: says ``always``, ``auto`` or ``never``, and the size that all videos share.

    Raises:
        VideoError: stage ``motion``; ``--transcode never`` was asked for, and the source has none that could be used.
    """
    if config.transcode == "always":
        return False
    problem = _impossible(facts, config)
    if config.transcode == "never":
        if problem is not None:
            raise VideoError("motion", f"{problem}; extract it with --transcode auto or always")
        return True
    return problem is None and _unfit(source, facts, config) is None


def _impossible(facts: SourceFacts, config: ExtractConfig) -> str | None:
    if facts.codec not in CODECS_WITH_VECTORS:
        return f"the codec {facts.codec} gives no motion vectors"
    if (facts.width, facts.height) != (config.width, config.height):
        return f"its size {facts.width}x{facts.height} is not {config.width}x{config.height}, which all videos share"
    return None


def _unfit(source: Path, facts: SourceFacts, config: ExtractConfig) -> str | None:
    """Why the source is not as good as a canonical stream; None if it is."""
    try:
        with open_input(source) as container:
            stream = container.streams[facts.stream_index]
            assert isinstance(stream, av.VideoStream), "the probe has chosen it"
            if _is_rotated(source, facts):
                return "players turn it"
            if facts.codec == "mpeg4":
                return mpeg4_problem(_packets(container, stream), stream.codec_context.extradata or b"", config.gop)
            return h264_problem(_packets(container, stream), stream.codec_context.extradata or b"", config.gop)
    except (av.error.FFmpegError, ValueError) as error:
        return f"it is damaged ({error})"


def _is_rotated(source: Path, facts: SourceFacts) -> bool:
    # PyAV tells it of decoded frames only; one is enough.
    with open_input(source) as container:
        for frame in container.decode(container.streams[facts.stream_index]):
            return isinstance(frame, av.VideoFrame) and frame.rotation != 0
    return False


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[bytes]:
    for packet in container.demux(stream):
        if packet.size:
            yield bytes(packet)
