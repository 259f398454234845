"""Motion grids computed independently of the extractor."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def draw_vectors(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Return grids, masks and frame types from PyAV with one thread, drawn pixel by pixel, past vectors only."""
    grids, valids, types = [], [], ""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"flags2": "+export_mvs"}
        stream.thread_type = "NONE"
        for frame in container.decode(stream):
            canvas = np.zeros((2, frame.height, frame.width), np.int16)
            seen = np.zeros((frame.height, frame.width), bool)
            for v in frame.side_data.get("MOTION_VECTORS") or ():
                if v.source < 0:
                    top, left = v.dst_y - v.h // 2, v.dst_x - v.w // 2
                    area = np.s_[max(top, 0) : top + v.h, max(left, 0) : left + v.w]
                    canvas[0][area] = -v.motion_x * 4 // v.motion_scale
                    canvas[1][area] = -v.motion_y * 4 // v.motion_scale
                    seen[area] = True
            grids.append(canvas[:, ::8, ::8])
            valids.append(seen[::8, ::8])
            types += "?IPB"[int(frame.pict_type)]
    return np.stack(grids), np.stack(valids), types
