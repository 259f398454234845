"""Video retrieval: R@k of queries in a gallery, by cosine similarity.

Shape legend: Q queries, G gallery rows, M neighbors.
"""

# ruff: noqa: N815 (field names carry the shapes of their arrays)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cmd_eval.data.splits import EvalSplit, gallery_counts
from cmd_eval.data.table import VideoTable
from cmd_eval.features.store import Features
from cmd_eval.metrics.intervals import Interval, mean_interval
from cmd_eval.metrics.retrieval import NO_HIT, RECALL_RANKS, chance_recall, first_hits
from cmd_eval.results.schema import mean_and_spread
from cmd_train.monitoring.neighbors import nearest, nearest_others

CLASS_RANKS = (1, 5)
EXAMPLES = 12
EXAMPLE_NEIGHBORS = 5


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """Retrieval result of one split.

    Attributes:
        split: queries and gallery; for leave-one-out without the queries whose label no other video has.
        first_hit_Q: rank of the nearest video with the query's label, starting at 1; ``NO_HIT`` if it is not among the
            M nearest.
        chance: for each k, the recall of random neighbors.
        neighbor_QM: rows of the nearest videos, nearest first; -1 where all others are excluded.
        similarity_QM: their cosine similarities.
    """

    split: EvalSplit
    first_hit_Q: NDArray[np.int64]
    chance: Mapping[int, float]
    neighbor_QM: NDArray[np.int64]
    similarity_QM: NDArray[np.float32]

    @property
    def hits(self) -> dict[int, NDArray[np.bool_]]:
        """For each k, (Q,) bool: whether a query's label is among its k nearest videos."""
        return {k: (self.first_hit_Q != NO_HIT) & (self.first_hit_Q <= k) for k in self.chance}

    def recall(self, videos: VideoTable, seed: int = 0) -> dict[int, Interval]:
        """Return R@k for each k with its interval over the groups of the queries, or over queries without groups."""
        groups = [videos.units[row] for row in self.split.query]
        return {k: mean_interval(hit_Q.astype(float), groups, seed=seed) for k, hit_Q in self.hits.items()}

    def as_json(self, videos: VideoTable, seed: int = 0) -> dict[str, Any]:
        """Return the split's entry in a result file."""
        split = self.split
        return {
            "split_column": split.split_column,
            "test_part": split.test_part,
            "train_part": split.train_part,
            "target": split.target,
            "queries": len(split.query),
            "gallery": len(split.gallery) - split.leave_one_out,
            "unlabeled_left_out": split.unlabeled,
            "copies_left_out": split.copies,
            "exclude_same": split.exclude_same,
            "searched": self.neighbor_QM.shape[1],
            "recall": {f"R@{k}": figure.as_json() for k, figure in self.recall(videos, seed).items()},
            "chance": {f"R@{k}": value for k, value in self.chance.items()},
            "per_class": self.per_class(videos, seed),
            "videos": self.first_hits(videos),
            "examples": self.examples(videos),
        }

    def first_hits(self, videos: VideoTable) -> list[dict[str, Any]]:
        """Return the rank of the first hit of each query; None if it is not among the M nearest videos."""
        names = videos.names(self.split.target)
        return [
            {"video": videos.ids[row], "class": names[row], "group": videos.units[row], "rank": rank or None}
            for row, rank in zip(self.split.query.tolist(), self.first_hit_Q.tolist(), strict=True)
        ]

    def per_class(self, videos: VideoTable, seed: int = 0) -> list[dict[str, Any]]:
        """Return R@1 and R@5 of the queries of each class."""
        names, groups = (
            np.array([column[row] for row in self.split.query], dtype=object)
            for column in (videos.names(self.split.target), videos.units)
        )
        hits = self.hits
        table = []
        for name in sorted(set(names)):
            own = names == name
            figures = {
                f"R@{k}": mean_interval(hits[k][own].astype(float), list(groups[own]), seed=seed).as_json()
                for k in CLASS_RANKS
            }
            table.append({"class": name, "queries": int(own.sum()), "recall": figures})
        return table

    def examples(self, videos: VideoTable) -> list[dict[str, Any]]:
        """Return up to 12 queries, spread over the classes, with their five nearest videos."""
        names = videos.names(self.split.target)
        query_names = [names[row] for row in self.split.query]
        return [
            {
                "query": videos.ids[self.split.query[place]],
                "query_label": query_names[place],
                "neighbors": [
                    {
                        "video": videos.ids[row],
                        "label": names[row],
                        "similarity": float(similarity),
                        "hit": names[row] == query_names[place],
                    }
                    for row, similarity in self.nearest_to(place, EXAMPLE_NEIGHBORS)
                ],
            }
            for place in spread_over_classes(query_names, EXAMPLES)
        ]

    def nearest_to(self, place: int, count: int) -> list[tuple[int, float]]:
        """Return rows and similarities of the videos nearest to the query at index ``place``."""
        rows, similarities = self.neighbor_QM[place][:count], self.similarity_QM[place][:count]
        found = zip(rows.tolist(), similarities.tolist(), strict=True)
        return [(row, similarity) for row, similarity in found if row >= 0]


def spread_over_classes(labels: Sequence[str], count: int) -> list[int]:
    """Return the indices of ``count`` items: the first of each class, then the second of each class, and so on.

    If there is not enough room for one more item of each class, evenly spaced classes are chosen.

    Args:
        labels: class of each item.
        count: number of indices; all if there are fewer items.
    """
    rounds: dict[int, list[int]] = {}
    seen: dict[str, int] = {}
    for place in sorted(range(len(labels)), key=lambda place: labels[place]):
        turn = seen.setdefault(labels[place], 0)
        seen[labels[place]] += 1
        rounds.setdefault(turn, []).append(place)
    chosen: list[int] = []
    for turn in sorted(rounds):
        candidates, room = rounds[turn], count - len(chosen)
        if len(candidates) > room:
            candidates = [candidates[place] for place in np.linspace(0, len(candidates) - 1, room).round().astype(int)]
        chosen += candidates
        if len(chosen) == count:
            break
    return chosen


def retrieve(features: Features, split: EvalSplit, ranks: Sequence[int] = RECALL_RANKS) -> RetrievalResult:
    """Compute R@k as in the paper's retrieval tables, or with leave-one-out over all videos.

    A k above the size of the gallery considers all of it. With leave-one-out, videos whose label no other video has are
    in the gallery but are not queries, since they cannot have a hit. Gallery videos that ``split.exclude_same``
    excludes for a query are not among its neighbors, and do not count for its chance.

    Args:
        features: features of all videos.
        split: queries and gallery.
        ranks: values of k.

    Raises:
        ValueError: no two videos share a label, with leave-one-out.
    """
    names = features.videos.names(split.target)
    query, gallery = features.comparable(split.query, split.gallery)
    size_Q, matches_Q = gallery_counts(features.videos, split)
    if split.exclude_same is not None:
        number_V = torch.from_numpy(features.videos.exclusion_numbers(split.exclude_same))
        excluded = number_V[split.query], number_V[split.gallery]
        similarity, places = nearest(query, gallery, min(max(ranks), len(split.gallery)), excluded=excluded)
    elif split.leave_one_out:
        similarity, places = nearest_others(gallery, min(max(ranks), len(split.gallery) - 1))
    else:
        similarity, places = nearest(query, gallery, min(max(ranks), len(split.gallery)))
    if split.leave_one_out:
        has_twin = matches_Q > 0
        if not has_twin.any():
            without = f" outside of a {split.exclude_same}" if split.exclude_same else ""
            raise ValueError(f"{split.target}: no two videos share one{without}, so no query can have a hit")
        similarity, places = similarity[has_twin], places[has_twin]
        size_Q, matches_Q = size_Q[has_twin], matches_Q[has_twin]
        split = replace(split, query=split.query[has_twin])
    query_names = [names[row] for row in split.query]
    gallery_names = [names[row] for row in split.gallery]
    place_QM = places.numpy()
    return RetrievalResult(
        split=split,
        first_hit_Q=first_hits(place_QM, query_names, gallery_names),
        chance={k: chance_recall(size_Q, matches_Q, k) for k in ranks},
        neighbor_QM=np.where(place_QM >= 0, split.gallery[place_QM], -1),
        similarity_QM=similarity.numpy(),
    )


def mean_over_splits(results: Sequence[RetrievalResult]) -> list[dict[str, Any]]:
    """Return for each target the means of R@k over splits with their standard deviations."""
    means = []
    for target in dict.fromkeys(result.split.target for result in results):
        own = [result for result in results if result.split.target == target]
        recall = {f"R@{k}": mean_and_spread([float(r.hits[k].mean()) for r in own]) for k in own[0].hits}
        means.append({"target": target, "recall": recall})
    return means
