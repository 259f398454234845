"""Find the videos nearest to a video file, or to one of the videos of a features file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cmd_eval.features.query import embed_query, extract_query, load_embedder, nearest_others_of
from cmd_eval.features.store import FeatureError, Features
from cmd_eval.tasks.search_picture import Strip, draw_search, frames_of
from cmd_extract.schema import VideoEntry, is_relabeled
from cmd_extract.shard.folders import Folders, join_paths, open_folders, split_paths
from cmd_extract.shard.reader import ShardSet
from cmd_train.monitoring.neighbors import nearest


@dataclass(frozen=True, kw_only=True)
class SearchHit:
    """A neighbor of the query.

    Attributes:
        row: row number in the features.
        video_id, label, group: metadata of the video; label and group may be empty.
        similarity: cosine similarity of the features.
        same_file: whether it is the same file as the query, by its content.
    """

    row: int
    video_id: str
    label: str
    group: str
    similarity: float
    same_file: bool

    @property
    def text(self) -> str:
        """The hit in one line."""
        words = [self.video_id, self.label, self.group, f"similarity {self.similarity:.3f}"]
        return "  ".join([word for word in words if word] + (["(the same file)"] if self.same_file else []))


@dataclass(frozen=True, kw_only=True)
class SearchRun:
    """Result of a search.

    Attributes:
        hits: nearest first.
        notes: notes for the user.
        picture: the picture; None if there are no shards to draw the videos from.
    """

    hits: tuple[SearchHit, ...]
    notes: tuple[str, ...]
    picture: Path | None


def search(
    query: str,
    features: Features,
    *,
    count: int,
    picture: Path,
    shards: Folders = (),
    checkpoint: Path | None = None,
    device: str = "auto",
) -> SearchRun:
    """Find the videos nearest to a video, and write a picture of them.

    Args:
        query: any file that ``cmd-extract`` can read, or else the id of a video of the features.
        features: features of the videos to search; for a file, they must have been computed by a checkpoint.
        count: number of videos to find; all if there are fewer.
        picture: image file to write.
        shards, checkpoint: current paths; None for the recorded ones.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: the query is neither a file nor an id, it cannot be extracted, or shards or checkpoint are not those
            of the features.
    """
    if Path(query).is_file():
        return _search_file(Path(query), features, count, picture, shards, checkpoint, device)
    if query not in features.videos.ids:
        raise FeatureError(
            f"{query}: neither a video file nor the id of a video in {features.path}, such as {features.videos.ids[0]}"
        )
    row = features.videos.ids.index(query)
    hits = _hits(features, nearest_others_of(features, row, count), features.videos.fingerprints[row])
    if not shards and not features.provenance.shards:
        note = f"no picture: {features.path} was imported without shards; give them with --shards"
        return SearchRun(hits=hits, notes=(note,), picture=None)
    gallery = _open_shards(features, shards)
    entries = _entries(gallery, features, [row, *(hit.row for hit in hits)])
    strips = [Strip(title=f"query: {query}", frames=frames_of(gallery, entries[0]))]
    draw_search([*strips, *_hit_strips(gallery, hits, entries[1:])], picture)
    return SearchRun(hits=hits, notes=(), picture=picture)


def _search_file(
    video: Path,
    features: Features,
    count: int,
    picture: Path,
    shards: Folders,
    checkpoint: Path | None,
    device: str,
) -> SearchRun:
    embedder = load_embedder(features, checkpoint)
    gallery = _open_shards(features, shards)
    with tempfile.TemporaryDirectory(prefix="cmd-eval-search-") as folder:
        query = extract_query(video, gallery.header, Path(folder))
        feature_1F = torch.from_numpy(embed_query(embedder, query, device))
        all_rows = features.rows(np.arange(len(features.videos)))
        similarity, rows = nearest(feature_1F, all_rows, min(count, len(all_rows)))
        found = zip(rows[0].tolist(), similarity[0].tolist(), strict=True)
        hits = _hits(features, found, query.videos[0].fingerprint)
        entries = _entries(gallery, features, [hit.row for hit in hits])
        strips = [Strip(title=f"query: {video.name}", frames=frames_of(query, query.videos[0]))]
        draw_search([*strips, *_hit_strips(gallery, hits, entries)], picture)
        notes = _notes(gallery, query)
    return SearchRun(hits=hits, notes=notes, picture=picture)


def _hit_strips(gallery: ShardSet, hits: Sequence[SearchHit], entries: Sequence[VideoEntry]) -> list[Strip]:
    return [
        Strip(title=f"{number}  {hit.text}", frames=frames_of(gallery, entry))
        for number, (hit, entry) in enumerate(zip(hits, entries, strict=True), start=1)
    ]


def _entries(gallery: ShardSet, features: Features, rows: Sequence[int]) -> list[VideoEntry]:
    """Return the entries of some videos of the features in the shards.

    Raises:
        FeatureError: one of them is not in the shards.
    """
    ids = [features.videos.ids[row] for row in rows]
    numbers = gallery.videos.find(ids)
    missing = [video_id for video_id in ids if video_id not in numbers]
    if missing:
        raise FeatureError(
            f"{join_paths(gallery.folders)}: video {missing[0]} of {features.path} is missing; "
            "pass the right shards with --shards"
        )
    return [gallery.videos[numbers[video_id]] for video_id in ids]


def _open_shards(features: Features, given: Folders) -> ShardSet:
    recorded = split_paths(features.provenance.shards) if features.provenance.shards else ()
    folders = given or recorded
    paths = join_paths(folders)
    if not given and not all(folder.is_dir() for folder in recorded):
        raise FeatureError(f"{paths}: the shards of {features.path} no longer exist; pass the new path with --shards")
    opened = open_folders(folders)
    # Features that were imported without shards record no hash of shards.
    expected = features.provenance.data_hash
    if features.provenance.shards and is_relabeled(opened.data_hash, expected):
        raise FeatureError(
            f"{features.path}: computed before {paths} was relabeled; compute the features again (`cmd-eval embed`)"
        )
    if features.provenance.shards and opened.data_hash != expected:
        raise FeatureError(
            f"{paths}: not the shards of {features.path} (data hash {opened.data_hash[:8]}, "
            f"expected {expected[:8]}); pass the right ones with --shards"
        )
    return opened


def _hits(features: Features, found: Iterable[tuple[int, float]], fingerprint: str) -> tuple[SearchHit, ...]:
    videos = features.videos
    return tuple(
        SearchHit(
            row=row,
            video_id=videos.ids[row],
            label=videos.labels[row],
            group=videos.groups[row],
            similarity=similarity,
            same_file=videos.fingerprints[row] == fingerprint,
        )
        for row, similarity in found
    )


def _notes(gallery: ShardSet, query: ShardSet) -> tuple[str, ...]:
    recorded, current = (shards.header.config.get("ffmpeg") for shards in (gallery, query))
    if recorded == current:
        return ()
    return (f"the shards were extracted with {recorded!r}, the query with {current!r}: frames may differ slightly",)
