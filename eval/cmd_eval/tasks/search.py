"""Find the videos nearest to a video file."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cmd_eval.features.query import embed_query, extract_query, load_embedder
from cmd_eval.features.store import FeatureError, Features
from cmd_eval.tasks.search_picture import Strip, draw_search, frames_of
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
    """

    hits: tuple[SearchHit, ...]
    notes: tuple[str, ...]


def search(
    video: Path,
    features: Features,
    *,
    count: int,
    picture: Path,
    shards: Folders = (),
    checkpoint: Path | None = None,
    device: str = "auto",
) -> SearchRun:
    """Find the videos nearest to a video file, and write a picture of them.

    Args:
        video: any file that ``cmd-extract`` can read.
        features: features of the videos to search, computed by a checkpoint.
        count: number of videos to find; all if there are fewer.
        picture: image file to write.
        shards, checkpoint: current paths; None for the recorded ones.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: the video cannot be extracted, or shards or checkpoint are not those of the features.
    """
    gallery = _open_shards(features, shards)
    embedder = load_embedder(features, checkpoint)
    with tempfile.TemporaryDirectory(prefix="cmd-eval-search-") as folder:
        query = extract_query(video, gallery.header, Path(folder))
        feature_1F = embed_query(embedder, query, device)
        all_rows = features.rows(np.arange(len(features.videos)))
        similarity, rows = nearest(torch.from_numpy(feature_1F), all_rows, min(count, len(all_rows)))
        hits = [
            _hit(features, row, value, query.videos[0].fingerprint)
            for row, value in zip(rows[0].tolist(), similarity[0].tolist(), strict=True)
        ]
        strips = [Strip(title=f"query: {video.name}", frames=frames_of(query, query.videos[0]))]
        entries = {entry.video_id: entry for entry in gallery.videos}
        for number, hit in enumerate(hits, start=1):
            strips.append(Strip(title=f"{number}  {hit.text}", frames=frames_of(gallery, entries[hit.video_id])))
        draw_search(strips, picture)
        notes = _notes(gallery, query)
    return SearchRun(hits=tuple(hits), notes=notes)


def _open_shards(features: Features, given: Folders) -> ShardSet:
    recorded = split_paths(features.provenance.shards)
    folders = given or recorded
    paths = join_paths(folders)
    if not given and not all(folder.is_dir() for folder in recorded):
        raise FeatureError(f"{paths}: the shards of {features.path} no longer exist; pass the new path with --shards")
    opened = open_folders(folders)
    if opened.data_hash != features.provenance.data_hash:
        raise FeatureError(
            f"{paths}: not the shards of {features.path} (data hash {opened.data_hash[:8]}, "
            f"expected {features.provenance.data_hash[:8]}); pass the right ones with --shards"
        )
    return opened


def _hit(features: Features, row: int, similarity: float, fingerprint: str) -> SearchHit:
    videos = features.videos
    return SearchHit(
        row=row,
        video_id=videos.ids[row],
        label=videos.labels[row],
        group=videos.groups[row],
        similarity=similarity,
        same_file=videos.fingerprints[row] == fingerprint,
    )


def _notes(gallery: ShardSet, query: ShardSet) -> tuple[str, ...]:
    recorded, current = (shards.header.config.get("ffmpeg") for shards in (gallery, query))
    if recorded == current:
        return ()
    return (f"the shards were extracted with {recorded!r}, the query with {current!r}: frames may differ slightly",)
