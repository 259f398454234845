"""Video retrieval: every query video looks for its label among the nearest gallery videos, by cosine similarity.

Shape legend: Q queries, G gallery rows, M neighbours.
"""

# ruff: noqa: N815 (carriers name the shapes of their arrays)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmd_eval.data.splits import Pairing
from cmd_eval.data.table import VideoTable
from cmd_eval.features.store import Features
from cmd_eval.metrics.intervals import RECALL_RANKS, Interval, bootstrap_interval, chance_recall_at, recall_hits
from cmd_eval.results.schema import mean_and_spread
from cmd_train.monitoring.neighbours import nearest, nearest_others

CLASS_RANKS = (1, 5)
EXAMPLES = 12
EXAMPLE_NEIGHBOURS = 5


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """R@k of one pairing of queries and gallery.

    Attributes:
        pairing: which videos; without the queries that nothing in the gallery could answer in leave-one-out.
        hits: k to (Q,) bool, which queries have their label among the k nearest.
        chance: k to what random neighbours would reach.
        neighbour_QM: numbers of the nearest videos, nearest first.
        similarity_QM: their cosine similarities.
    """

    pairing: Pairing
    hits: Mapping[int, NDArray[np.bool_]]
    chance: Mapping[int, float]
    neighbour_QM: NDArray[np.int64]
    similarity_QM: NDArray[np.float32]

    def recall(self, seed: int = 0) -> dict[int, Interval]:
        """R@k by k, as a share of queries, with the bootstrap interval over queries."""
        return {k: bootstrap_interval(hit_Q.astype(float), seed=seed) for k, hit_Q in self.hits.items()}

    def as_json(self, videos: VideoTable, seed: int = 0) -> dict[str, Any]:
        """For a result file."""
        pairing = self.pairing
        return {
            "split_column": pairing.split_column,
            "query_part": pairing.query_part,
            "gallery_part": pairing.gallery_part,
            "label": pairing.kind,
            "queries": len(pairing.query),
            "gallery": len(pairing.gallery) - pairing.leave_one_out,
            "unlabelled_left_out": pairing.unlabelled,
            "recall": {f"R@{k}": figure.as_json() for k, figure in self.recall(seed).items()},
            "chance": {f"R@{k}": value for k, value in self.chance.items()},
            "per_class": self.per_class(videos, seed),
            "examples": self.examples(videos),
        }

    def per_class(self, videos: VideoTable, seed: int = 0) -> list[dict[str, Any]]:
        """R@1 and R@5 of the queries of each class."""
        names = np.array([videos.names(self.pairing.kind)[row] for row in self.pairing.query], dtype=object)
        table = []
        for name in sorted(set(names)):
            own = names == name
            figures = {
                f"R@{k}": bootstrap_interval(self.hits[k][own].astype(float), seed=seed).as_json() for k in CLASS_RANKS
            }
            table.append({"class": name, "queries": int(own.sum()), "recall": figures})
        return table

    def examples(self, videos: VideoTable) -> list[dict[str, Any]]:
        """Up to 12 queries, one a class in turn, with their five nearest."""
        names = videos.names(self.pairing.kind)
        asked = [names[row] for row in self.pairing.query]
        return [
            {
                "query": videos.ids[self.pairing.query[place]],
                "query_label": asked[place],
                "neighbours": [
                    {
                        "video": videos.ids[row],
                        "label": names[row],
                        "similarity": float(similarity),
                        "hit": names[row] == asked[place],
                    }
                    for row, similarity in self.nearest_to(place, EXAMPLE_NEIGHBOURS)
                ],
            }
            for place in spread_over_classes(asked, EXAMPLES)
        ]

    def nearest_to(self, place: int, count: int) -> list[tuple[int, float]]:
        """Numbers and similarities of the videos nearest to the query at ``place``."""
        rows, similarities = self.neighbour_QM[place][:count], self.similarity_QM[place][:count]
        return list(zip(rows.tolist(), similarities.tolist(), strict=True))


def spread_over_classes(labels: Sequence[str], count: int) -> list[int]:
    """Places of ``count`` items: the first of each class, evenly chosen among the classes, then the second, and so on.

    Args:
        labels: the class of each item.
        count: how many places to choose; all of them if there are fewer.
    """
    rounds: dict[int, list[int]] = {}
    seen: dict[str, int] = {}
    for place in sorted(range(len(labels)), key=lambda place: labels[place]):
        turn = seen.setdefault(labels[place], 0)
        seen[labels[place]] += 1
        rounds.setdefault(turn, []).append(place)
    chosen: list[int] = []
    for turn in sorted(rounds):
        offered, room = rounds[turn], count - len(chosen)
        if len(offered) > room:
            offered = [offered[place] for place in np.linspace(0, len(offered) - 1, room).round().astype(int)]
        chosen += offered
        if len(chosen) == count:
            break
    return chosen


def retrieve(features: Features, pairing: Pairing, ranks: Sequence[int] = RECALL_RANKS) -> RetrievalResult:
    """R@k of queries in a gallery (method of the paper's retrieval tables), or of every video among all others.

    A k above the size of the gallery counts all of it. In leave-one-out, videos that share their label with no other
    are found among but do not ask: no answer would be right.

    Args:
        features: of the videos.
        pairing: which of them ask and which are found.
        ranks: the k.

    Raises:
        ValueError: leave-one-out, and no two videos share a label.
    """
    names = features.videos.names(pairing.kind)
    asked, found = features.comparable(pairing.query, pairing.gallery)
    if pairing.leave_one_out:
        similarity, places = nearest_others(found, min(max(ranks), len(pairing.gallery) - 1))
        has_twin = _shares_label([names[row] for row in pairing.query])
        if not has_twin.any():
            raise ValueError(f"{pairing.kind}: no two videos share one, so nothing can be found")
        similarity, places = similarity[has_twin], places[has_twin]
        pairing = replace(pairing, query=pairing.query[has_twin])
    else:
        similarity, places = nearest(asked, found, min(max(ranks), len(pairing.gallery)))
    wanted = [names[row] for row in pairing.query]
    offered = [names[row] for row in pairing.gallery]
    place_QM = places.numpy()
    return RetrievalResult(
        pairing=pairing,
        hits={k: recall_hits(place_QM, wanted, offered, min(k, place_QM.shape[1])) for k in ranks},
        chance={k: chance_recall_at(wanted, offered, k, leave_one_out=pairing.leave_one_out) for k in ranks},
        neighbour_QM=pairing.gallery[place_QM],
        similarity_QM=similarity.numpy(),
    )


def _shares_label(labels: Sequence[str]) -> NDArray[np.bool_]:
    _, number, count = np.unique(np.asarray(labels, dtype=str), return_inverse=True, return_counts=True)
    shared: NDArray[np.bool_] = count[number] > 1
    return shared


def mean_over_splits(results: Sequence[RetrievalResult]) -> list[dict[str, Any]]:
    """For each kind of label, the mean of R@k over splits with its spread."""
    means = []
    for kind in dict.fromkeys(result.pairing.kind for result in results):
        own = [result for result in results if result.pairing.kind == kind]
        recall = {f"R@{k}": mean_and_spread([float(r.hits[k].mean()) for r in own]) for k in own[0].hits}
        means.append({"label": kind, "recall": recall})
    return means
