"""Select the videos of a shard set to use: one part of a split, or all of them."""

from __future__ import annotations

from collections.abc import Sequence

from cmd_extract.shard.videos import Videos


def resolve_split_columns(
    available: Sequence[str], given: Sequence[str], *, alternative: str = "use all videos with --all-videos"
) -> tuple[str, ...]:
    """Return the split columns to use: the given ones, or else the only one in the shards.

    Args:
        available: split columns of the shards.
        given: split columns chosen by the user; may be empty.
        alternative: what to do instead of choosing a split column, for the error message.

    Returns:
        The given columns without repetitions; if none is given, the only available column, or () if there is none.

    Raises:
        ValueError: a given column is not available, or none is given and several are available.
    """
    listing = ", ".join(available)
    for column in given:
        if column not in available:
            found = f"available: {listing}" if available else "the shards have no split columns"
            raise ValueError(f"split column {column!r} is not in the shards; {found}")
    if not given and len(available) > 1:
        raise ValueError(
            f"the shards have {len(available)} split columns ({listing}); "
            f"choose one with --split-column, or {alternative}"
        )
    return tuple(dict.fromkeys(given or available))


def select_videos(videos: Videos, split_column: str | None, part: str) -> Videos:
    """Return the videos in one part of a split, in their order, or all videos if `split_column` is None.

    A video whose manifest cell is empty belongs to no part.

    Raises:
        ValueError: the split column does not exist, `part` is empty, or the part contains no videos.
    """
    if split_column is None:
        return videos
    if not part:
        raise ValueError(
            f"part: must not be empty; name a part of {split_column} (videos with an empty cell are in no part)"
        )
    resolve_split_columns(sorted(videos.split_columns), [split_column])
    parts = videos.split(split_column)
    chosen = parts.where(part)
    if not len(chosen):
        raise ValueError(
            f"part: {part!r} of split column {split_column!r} contains no videos; "
            f"parts with videos: {', '.join(parts.used) or 'none'}"
        )
    return videos.select(chosen)
