"""Search demo of the report: a few videos as queries against all others, by the features of the trained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmd_eval.features.query import nearest_others_of
from cmd_eval.features.store import Features, read_features
from cmd_eval.report.embedding_map import EMBEDDINGS_PATTERN
from cmd_eval.report.pictures import Example, ExampleVideo, choose_videos, try_strip
from cmd_eval.report.tables import features_name
from cmd_extract.schema import VideoEntry
from cmd_extract.shard.reader import ShardSet

_QUERIES = 3
_NEIGHBORS = 5


@dataclass(frozen=True, kw_only=True)
class SearchDemo:
    """Queries with their nearest videos.

    Attributes:
        features: name of the features.
        file: name of the features file.
        searches: the queries.
    """

    features: str
    file: str
    searches: Sequence[Example]


def search_demo(folder: Path, shards: ShardSet) -> tuple[SearchDemo | None, list[str]]:
    """Search the videos nearest to three videos of different labels, among all videos of the shards.

    Args:
        folder: folder of the features files. The first one of a trained network is used, or else of an untrained one.
        shards: shards of the features, from which frames are read.

    Returns:
        The demo, or None without features of these shards, and a line for each problem.
    """
    found: list[Features] = []
    for path in sorted(folder.glob(EMBEDDINGS_PATTERN)):
        try:
            features = read_features(path)
        except (ValueError, OSError):
            continue  # reported with the embedding maps
        if features.provenance.data_hash == shards.data_hash and len(features.videos) > 1:
            found.append(features)
    if not found:
        return None, []
    features = min(found, key=lambda each: each.provenance.untrained)
    try:
        queries = choose_videos(shards.videos, _QUERIES)
        searches = [_search(features, shards, entry) for entry in queries]
    except (ValueError, OSError, KeyError) as error:
        return None, [f"search demo: {error}"]
    assert features.path is not None
    name = features_name(vars(features.provenance))
    return SearchDemo(features=name, file=features.path.name, searches=searches), []


def _search(features: Features, shards: ShardSet, query: VideoEntry) -> Example:
    def shown(entry: VideoEntry, similarity: float | None, hit: bool | None) -> ExampleVideo:
        return ExampleVideo(
            video_id=entry.video_id,
            name=entry.label,
            other_name=entry.group,
            similarity=similarity,
            hit=hit,
            strip=try_strip(shards, entry),
        )

    neighbors = []
    found = nearest_others_of(features, features.videos.ids.index(query.video_id), _NEIGHBORS)
    numbers = shards.videos.find(features.videos.ids[row] for row, _ in found)
    for row, similarity in found:
        entry = shards.videos[numbers[features.videos.ids[row]]]
        neighbors.append(shown(entry, similarity, entry.label == query.label if query.label else None))
    hits = sum(bool(neighbor.hit) for neighbor in neighbors)
    return Example(target="label", query=shown(query, None, None), neighbors=neighbors, hits=hits)
