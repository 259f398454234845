"""H.264 pictures with both intra-coded and inter-coded slices."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cmd_extract.decode.ffmpeg import FfmpegBinary
from tests.integration.cmd_extract.extraction import MakeVideo, extract, only

CUT = 9


def slices_of(source: Path) -> tuple[list[bytes], list[int]]:
    """Return the NAL units of an elementary stream and the indices of the slices."""
    units = source.read_bytes().split(b"\0\0\1")
    return units, [number for number, unit in enumerate(units) if unit and unit[0] & 31 in (1, 5)]


@pytest.mark.parametrize("suffix", ["h264", "mp4"])
def test_picture_with_mixed_slice_types_is_not_a_keyframe(
    make_video: MakeVideo, ffmpeg: FfmpegBinary, tmp_path: Path, suffix: str
) -> None:
    streams = []
    for scenecut in (400, 0):  # a non-IDR I-frame at the cut, and a P-frame
        private = f"slices=2:ref=1:bframes=0:keyint=250:min-keyint=100:mbtree=0:qp=24:scenecut={scenecut}"
        options = ("-vf", f"negate=enable='gte(n,{CUT})'", "-c:v", "libx264", "-x264-params", private)
        streams.append(slices_of(make_video(tmp_path / f"{scenecut}.h264", *options, source="mandelbrot", frames=20)))
    (intra, intra_slices), (units, slices) = streams
    assert len(slices) == len(intra_slices) == 40
    units[slices[2 * CUT]] = intra[intra_slices[2 * CUT]]
    (tmp_path / "v").mkdir()
    mixed = tmp_path / "v" / "a.h264"
    mixed.write_bytes(b"\0\0\1".join(units))
    if suffix == "mp4":
        command = [ffmpeg.path, "-loglevel", "error", "-i", str(mixed), "-c", "copy", str(mixed.with_suffix(".mp4"))]
        subprocess.run(command, check=True)
        mixed.unlink()
    shards, entry = only(extract(tmp_path / "v", "--transcode", "never")[0])
    assert entry.frame_count == 20
    assert entry.keyframe_indices == (0,)
    assert b"".join(shards.frame_types(entry)) == b"I" + b"P" * 19
    lower = shards.motion(entry, CUT, CUT + 1).valid[0, 8:]
    assert lower.any(), "the vectors of the other slice are kept"
