"""The small frames of a video alone: the same pixels as in a shard, without motion vectors and keyframes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.source import SourceInfo, probe
from cmd_extract.decode.spool import spool_jpegs
from cmd_extract.decode.transcode import transcode
from cmd_extract.decode.video import require_frames, utf8_path


@dataclass(frozen=True, kw_only=True)
class ExtractedFrames:
    """The small frames of one video, as a file in its working folder.

    Attributes:
        source: properties of the source file.
        jpeg: file of concatenated JPEGs.
        sizes: (F,) int64, bytes of each JPEG.
    """

    source: SourceInfo
    jpeg: Path
    sizes: NDArray[np.int64]


def extract_frames(source: Path, config: ExtractConfig, workdir: Path, binary: FfmpegBinary) -> ExtractedFrames:
    """Decode the small frames of one video.

    Args:
        source: the video file.
        config: the extraction configuration; frames are made whatever its ``store_frames``.
        workdir: existing, empty folder for this video alone.
        binary: the FFmpeg to run.

    Raises:
        VideoError: the video cannot be decoded.
        OutputError: ``workdir`` cannot be written.
    """
    source = utf8_path(source, workdir)
    info = probe(source)
    files = transcode(source, info, replace(config, store_frames=True), workdir, binary, frames_only=True)
    target = workdir / "frames"
    sizes, _ = spool_jpegs(files.frames, target)
    require_frames(len(sizes), files.first_error)
    return ExtractedFrames(source=info, jpeg=target, sizes=sizes)
