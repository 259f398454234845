"""Maps of the embeddings that lie beside a training's results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmd_eval.features.store import Features, read_features
from cmd_eval.report.embedding_map import EmbeddingMap, draw_map, project
from cmd_eval.report.report_figures import features_name

EMBEDDINGS_PATTERN = "embeddings-*.h5"
_READING = (
    "Neighbours on the map are mostly neighbours in feature space; distances between clusters, and their sizes, mean "
    "little. Names come with the mouse."
)


@dataclass(frozen=True, kw_only=True)
class MappedFeatures:
    """The maps of one file of features, and the words above them."""

    caption: str
    maps: Sequence[EmbeddingMap]


def read_maps(folder: Path) -> tuple[list[MappedFeatures], list[str]]:
    """Maps by label and by group of every file of embeddings in a folder, trained ones first.

    Returns:
        The maps, and a line for each file that gives none.
    """
    maps, problems = [], []
    paths = sorted(folder.glob(EMBEDDINGS_PATTERN), key=lambda path: (path.stem.endswith("untrained"), path.name))
    for path in paths:
        try:
            maps.append(map_features(read_features(path)))
        except (ValueError, OSError) as error:
            problems.append(f"map of the embeddings: {error}")
    return maps, problems


def map_features(features: Features) -> MappedFeatures:
    """Maps of features by label and by group; a kind of name that no video has gives no map.

    Raises:
        ValueError: there are fewer than 3 videos.
    """
    videos = features.videos
    projection = project(features.mean_VF)
    # Told apart by more than the id, which need not say what a video shows.
    named = zip(videos.ids, videos.labels, videos.groups, strict=True)
    titles = [" · ".join(filter(None, names)) for names in named]
    kinds = [("label", videos.labels), ("group", videos.groups)]
    maps = [draw_map(projection, kind, names, titles) for kind, names in kinds if any(names)]
    shown, all_videos = len(projection.rows), len(videos.ids)
    of_all = f"{shown:,} videos" if shown == all_videos else f"{shown:,} of {all_videos:,} videos, drawn at random"
    name = features_name({"features": features.provenance.features, **_checkpoint_of(features)})
    return MappedFeatures(
        caption=f"{name[0].upper()}{name[1:]}: {of_all}, placed by {projection.method}. {_READING}",
        maps=maps or [draw_map(projection, "label", videos.labels, titles)],
    )


def _checkpoint_of(features: Features) -> dict[str, object]:
    provenance = features.provenance
    return {"checkpoint": provenance.checkpoint, "untrained": provenance.untrained, "step": provenance.step}
