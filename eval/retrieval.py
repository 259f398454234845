"""Video retrieval: every query video looks for its label among the nearest gallery videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eval.metrics import RECALL_RANKS, chance_recall_at, recall_at
from extract.schema import VideoEntry
from train.neighbours import nearest
from train.selection import select_videos

LABEL_KINDS = ("label", "group")


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """R@k of one label kind.

    Attributes:
        label_kind: ``label`` or ``group``.
        queries, gallery: numbers of videos.
        recall: k to R@k, as a share of queries.
        chance: k to what random neighbours would reach.
    """

    label_kind: str
    queries: int
    gallery: int
    recall: Mapping[int, float]
    chance: Mapping[int, float]

    def as_json(self) -> dict[str, Any]:
        """The same for a JSON file."""
        return {
            "label": self.label_kind,
            "queries": self.queries,
            "gallery": self.gallery,
            "recall": {f"R@{k}": value for k, value in self.recall.items()},
            "chance": {f"R@{k}": value for k, value in self.chance.items()},
        }


def select_labelled(
    entries: Sequence[VideoEntry], split_column: str, part: str, kinds: Sequence[str]
) -> tuple[list[VideoEntry], int]:
    """The videos in a part of a split that have every label asked for, and how many of the part have not.

    Raises:
        ValueError: the split column does not exist, or no such video is in the part.
    """
    inside = select_videos(entries, split_column, part)
    chosen = [entry for entry in inside if all(label_of(entry, kind) for kind in kinds)]
    if not chosen:
        raise ValueError(f"no video in part {part!r} of {split_column} has a {' and a '.join(kinds)}")
    return chosen, len(inside) - len(chosen)


def label_of(entry: VideoEntry, kind: str) -> str:
    """The entry's label or group; empty if it has none."""
    return entry.label if kind == "label" else entry.group


def check_leakage(queries: Sequence[VideoEntry], gallery: Sequence[VideoEntry]) -> None:
    """Refuses a gallery that holds a query: the same source file, told by its bytes.

    Raises:
        ValueError: names the first such video.
    """
    by_print = {entry.fingerprint: entry for entry in gallery}
    for query in queries:
        twin = by_print.get(query.fingerprint)
        if twin is not None:
            raise ValueError(
                f"query {query.video_id} and gallery video {twin.video_id} are the same file; "
                "a hit would mean nothing: remove one of them from its part"
            )


def retrieve(
    query_QF: Tensor, gallery_GF: Tensor, queries: Sequence[VideoEntry], gallery: Sequence[VideoEntry], kind: str
) -> RetrievalResult:
    """R@1, 5, 10, 20 and 50 of queries in a gallery, by cosine similarity (method of the paper's retrieval tables).

    A k above the size of the gallery counts all of it.

    Args:
        query_QF, gallery_GF: features.
        queries, gallery: the videos they belong to.
        kind: ``label`` or ``group``.
    """
    _, rows = nearest(query_QF, gallery_GF, min(max(RECALL_RANKS), len(gallery)))
    wanted = [label_of(entry, kind) for entry in queries]
    offered = [label_of(entry, kind) for entry in gallery]
    return RetrievalResult(
        label_kind=kind,
        queries=len(queries),
        gallery=len(gallery),
        recall={k: recall_at(rows.numpy(), wanted, offered, k) for k in RECALL_RANKS},
        chance={k: chance_recall_at(wanted, offered, k) for k in RECALL_RANKS},
    )
