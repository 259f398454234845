"""Which videos of a shard set take part: one part of a split, or all."""

from __future__ import annotations

from collections.abc import Sequence

from cmd_extract.schema import VideoEntry


def select_videos(entries: Sequence[VideoEntry], split_column: str | None, part: str) -> tuple[VideoEntry, ...]:
    """The videos of one part of a split, in order; all videos if no split column is named.

    An empty cell of the manifest means that a video is in no part.

    Raises:
        ValueError: the split column does not exist, no part is named, or no video is in the part.
    """
    if split_column is None:
        return tuple(entries)
    if not part:
        raise ValueError(f"part: empty; name a part of {split_column}, an empty cell means that a video is in none")
    columns = sorted({name for entry in entries for name in entry.splits})
    if split_column not in columns:
        raise ValueError(
            f"split_column: {split_column!r} is not in the shards; they have {', '.join(columns) or 'none'}"
        )
    chosen = tuple(entry for entry in entries if entry.splits.get(split_column) == part)
    if not chosen:
        parts = sorted({entry.splits.get(split_column, "") for entry in entries} - {""})
        raise ValueError(
            f"part: no video of {split_column} is in {part!r}; its parts are {', '.join(parts) or 'all empty'}"
        )
    return chosen
