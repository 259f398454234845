"""Finds the videos nearest to any video file."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cmd_eval.features.query import embed_query, extract_query, load_embedder
from cmd_eval.features.store import FeatureError, Features
from cmd_eval.tasks.search_picture import Strip, draw_search, frames_of
from cmd_extract.shard.reader import ShardSet
from cmd_train.monitoring.neighbours import nearest


@dataclass(frozen=True, kw_only=True)
class Found:
    """A neighbour of a query.

    Attributes:
        row: its number among the features.
        video_id, label, group: of the video; the last two may be empty.
        similarity: cosine similarity of the features.
        same_file: whether it is the query itself, told by its bytes.
    """

    row: int
    video_id: str
    label: str
    group: str
    similarity: float
    same_file: bool

    @property
    def text(self) -> str:
        """One line."""
        words = [self.video_id, self.label, self.group, f"similarity {self.similarity:.3f}"]
        return "  ".join([word for word in words if word] + (["(the same file)"] if self.same_file else []))


@dataclass(frozen=True, kw_only=True)
class SearchRun:
    """What a search gives.

    Attributes:
        found: nearest first.
        notes: what the user should know, a line each.
    """

    found: tuple[Found, ...]
    notes: tuple[str, ...]


def search(
    video: Path,
    features: Features,
    *,
    count: int,
    picture: Path,
    shards: Path | None = None,
    checkpoint: Path | None = None,
    device: str = "auto",
) -> SearchRun:
    """Finds the videos nearest to a video file, and draws them.

    Args:
        video: any file that ``cmd-extract`` can read.
        features: of the videos to search, made by a checkpoint.
        count: how many to find; all of them if there are fewer.
        picture: image file to write.
        shards, checkpoint: where they lie now; None for where they lay when the features were made.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: the video cannot be extracted, or shards or checkpoint are not those of the features.
    """
    known = _shards_of(features, shards)
    embedder = load_embedder(features, checkpoint)
    with tempfile.TemporaryDirectory(prefix="cmd-eval-search-") as folder:
        query = extract_query(video, known.header, Path(folder))
        feature_1F = embed_query(embedder, query, device)
        everything = features.rows(np.arange(len(features.videos)))
        similarity, rows = nearest(torch.from_numpy(feature_1F), everything, min(count, len(everything)))
        found = [
            _found(features, row, value, query.videos[0].fingerprint)
            for row, value in zip(rows[0].tolist(), similarity[0].tolist(), strict=True)
        ]
        strips = [Strip(title=f"query: {video.name}", frames=frames_of(query, query.videos[0]))]
        entries = {entry.video_id: entry for entry in known.videos}
        for number, item in enumerate(found, start=1):
            strips.append(Strip(title=f"{number}  {item.text}", frames=frames_of(known, entries[item.video_id])))
        draw_search(strips, picture)
        notes = _notes(known, query)
    return SearchRun(found=tuple(found), notes=notes)


def _shards_of(features: Features, shards: Path | None) -> ShardSet:
    place = shards or Path(features.provenance.shards)
    if not place.is_dir():
        raise FeatureError(f"{place}: the shards of {features.path} are not there any more; give --shards")
    found = ShardSet(place)
    if found.data_hash != features.provenance.data_hash:
        raise FeatureError(
            f"{place}: not the shards that {features.path} was made of (data hash {found.data_hash[:8]}, "
            f"need {features.provenance.data_hash[:8]}); give the others with --shards"
        )
    return found


def _found(features: Features, row: int, similarity: float, fingerprint: str) -> Found:
    videos = features.videos
    return Found(
        row=row,
        video_id=videos.ids[row],
        label=videos.labels[row],
        group=videos.groups[row],
        similarity=similarity,
        same_file=videos.fingerprints[row] == fingerprint,
    )


def _notes(known: ShardSet, query: ShardSet) -> tuple[str, ...]:
    had, has = known.header.config.get("ffmpeg"), query.header.config.get("ffmpeg")
    if had == has:
        return ()
    return (f"the shards were made by {had!r}, the query by {has!r}: pictures may differ a little",)
