"""Summary of an output folder: totals and statistics."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmd_extract.schema import DAMAGED_NAME, NOTES_NAME, QUARTER_PX
from cmd_extract.shard.reader import ShardSet
from cmd_extract.shard.videos import Names

_SAMPLED_VIDEOS = 200
_SAMPLED_FRAMES = 64


@dataclass(frozen=True, kw_only=True)
class VectorStatistics:
    """Motion in a sample of frames, I-frames excluded.

    Attributes:
        frames: number of frames.
        valid_fraction: fraction of cells with a vector.
        moving_fraction: fraction of those vectors that are not 0.
        length_px: 50th, 90th and 99th percentile and maximum of their lengths, in canonical pixels.
    """

    frames: int
    valid_fraction: float
    moving_fraction: float
    length_px: tuple[float, float, float, float]


def vector_statistics(shards: ShardSet) -> VectorStatistics:
    """Return statistics over the first 64 frames of 200 to 399 evenly spaced videos, or of all if there are fewer."""
    step = max(1, len(shards.videos) // _SAMPLED_VIDEOS)
    lengths, cells, frames = [np.empty(0)], 0, 0
    for entry in shards.videos[::step]:
        motion = shards.motion(entry, 0, min(entry.frame_count, _SAMPLED_FRAMES))
        predicted = motion.valid.any(axis=(1, 2))
        vectors = motion.grid_quarter_px.astype(np.float64).transpose(0, 2, 3, 1)[motion.valid] / QUARTER_PX
        lengths.append(np.hypot(vectors[:, 0], vectors[:, 1]))
        frames += int(predicted.sum())
        cells += int(predicted.sum()) * motion.valid[0].size
    joined = np.concatenate(lengths)
    shown = np.percentile(joined, [50, 90, 99, 100]) if len(joined) else np.zeros(4)
    return VectorStatistics(
        frames=frames,
        valid_fraction=len(joined) / cells if cells else 0.0,
        moving_fraction=float((joined > 0).mean()) if len(joined) else 0.0,
        length_px=(float(shown[0]), float(shown[1]), float(shown[2]), float(shown[3])),
    )


def count_notes(out: Path) -> int:
    """Return the number of rows of ``notes.csv`` of an output folder, 0 if there is none."""
    path = out / NOTES_NAME
    if not path.exists():
        return 0
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        return sum(1 for _ in csv.reader(stream)) - 1


def describe_folder(folder: Path) -> list[tuple[str, str]]:
    """Return names and values of a summary, in display order.

    Raises:
        ShardError: the folder contains no complete extraction.
    """
    shards = ShardSet(folder)
    header, videos, totals = shards.header, shards.videos, shards.totals
    damaged = totals["damaged"]
    notes = count_notes(folder)
    frames, fps = videos.numbers("frame_count"), videos.numbers("fps")
    seconds = np.divide(frames, fps, out=np.zeros(len(videos)), where=fps > 0)
    motion = vector_statistics(shards)
    p50, p90, p99, longest = motion.length_px
    sizes, counts = np.unique(
        np.stack([videos.numbers("source_width"), videos.numbers("source_height")]), axis=1, return_counts=True
    )
    source_sizes = {
        f"{width}x{height}": n for (width, height), n in zip(sizes.T.tolist(), counts.tolist(), strict=True)
    }
    rows = [
        ("videos", f"{len(videos)}, {totals['failures']} failures, {shards.shard_count} shards"),
        ("damaged", f"{damaged} videos, see {folder / DAMAGED_NAME}" if damaged else ""),
        ("notes", f"{notes}, see {folder / NOTES_NAME}" if notes else ""),
        ("frames", f"{frames.sum()}; per video {frames.min()} to {frames.max()}, median {np.median(frames):.0f}"),
        ("length", f"{seconds.sum() / 3600:.2f} hours; frame rates {_range(fps)}"),
        ("size", f"{totals['size_bytes'] / 1e6:.1f} MB, {totals['size_bytes'] / frames.sum():.0f} bytes per frame"),
        ("classes", str(len(videos.names("label").used))),
        *((name, _counts(_count_names(videos.split(name)))) for name in videos.split_columns),
        ("source codecs", _counts(_count_names(videos.names("codec")))),
        ("source sizes", _counts(source_sizes)),
        ("stream", f"{header.canonical_width}x{header.canonical_height} {header.config['codec']}"),
        ("small frames", f"{header.frame_width}x{header.frame_height}"),
        ("keyframes", str(videos.numbers("keyframe_count").sum())),
        ("motion grid", f"{header.grid_shape[1]}x{header.grid_shape[0]} cells of {header.cell_px} pixels"),
        ("vectors", f"in {motion.valid_fraction:.1%} of cells, {motion.moving_fraction:.1%} of them not 0"),
        ("vector length", f"median {p50:.2f}, 90th percentile {p90:.2f}, 99th {p99:.2f}, maximum {longest:.2f} pixels"),
        ("configuration", shards.config_hash),
    ]
    return [(name, value) for name, value in rows if value]


def _range(values: NDArray[np.float64]) -> str:
    low, high = values.min(), values.max()
    return f"{low:.4g}" if f"{low:.4g}" == f"{high:.4g}" else f"{low:.4g} to {high:.4g}"


def _count_names(column: Names) -> dict[str, int]:
    counts = np.bincount(column.codes, minlength=len(column.names)).tolist()
    return {name or "(none)": count for name, count in zip(column.names, counts, strict=True) if count}


def _counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {count}" for name, count in ordered[:5])
    return shown + (f" and {len(counts) - 5} more" if len(counts) > 5 else "")
