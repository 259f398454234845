"""Retrieval examples of a report: a query's strip beside those of its nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmd_eval.report.pictures import Picture, draw_strip
from cmd_extract.schema import VideoEntry
from cmd_extract.shard.reader import ShardSet

_MOST_EXAMPLES = 12


@dataclass(frozen=True, kw_only=True)
class ShownVideo:
    """A video of an example; ``hit`` says whether a neighbour has the query's label, None for the query itself.

    Attributes:
        video_id, label: of the video; ``label`` is its group where retrieval is by group.
        further: its other name, the group or the label.
        similarity: cosine similarity to the query; None for the query itself.
        hit: whether it is right.
        strip: its frames; None if they cannot be shown.
    """

    video_id: str
    label: str
    further: str
    similarity: float | None
    hit: bool | None
    strip: Picture | None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A query and its nearest neighbours.

    Attributes:
        kind: what a hit shares with the query, ``label`` or ``group``.
        query, neighbours: the videos.
        hits: how many neighbours are right.
    """

    kind: str
    query: ShownVideo
    neighbours: Sequence[ShownVideo]
    hits: int


def read_examples(
    record: Mapping[str, Any], split: Mapping[str, Any], shards: ShardSet
) -> tuple[list[Example], list[str]]:
    """The examples of a retrieval result, with pictures.

    Args:
        record: the result; its shards are ``shards``.
        split: one of its splits.
        shards: where the frames lie.

    Returns:
        The examples, and a line for each that cannot be shown, for it names a video that the shards do not hold.
    """
    entries = {entry.video_id: entry for entry in shards.videos}
    kind = str(split["label"])
    by_label = kind == "label"

    def shown(video_id: str, similarity: float | None = None, hit: bool | None = None) -> ShownVideo:
        entry = entries[video_id]
        return ShownVideo(
            video_id=video_id,
            label=entry.label if by_label else entry.group,
            further=entry.group if by_label else entry.label,
            similarity=similarity,
            hit=hit,
            strip=_strip(shards, entry),
        )

    examples, problems = [], []
    for example in split["examples"][:_MOST_EXAMPLES]:
        named = [example["query"], *(neighbour["video"] for neighbour in example["neighbours"])]
        strange = [video_id for video_id in named if video_id not in entries]
        if strange:
            problems.append(
                f"retrieval example of {example['query']}: {record['file']} names {strange[0]}, which is not in "
                f"{shards.folder}; make the result again"
            )
            continue
        neighbours = [shown(n["video"], n["similarity"], bool(n["hit"])) for n in example["neighbours"]]
        hits = sum(bool(neighbour.hit) for neighbour in neighbours)
        examples.append(Example(kind=kind, query=shown(example["query"]), neighbours=neighbours, hits=hits))
    return examples, problems


def _strip(shards: ShardSet, entry: VideoEntry) -> Picture | None:
    try:
        return draw_strip(shards, entry)
    except (ValueError, OSError):
        # The page says that it cannot be shown; all else of the example still counts.
        return None
