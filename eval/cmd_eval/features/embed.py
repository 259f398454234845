"""Embed videos with a backbone: the pooled feature of each clip, written to a features file.

Shape legend: N clips of a video, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmd_eval.data.table import VideoTable
from cmd_eval.features.clips import ClipProtocol, run_on_clips
from cmd_eval.features.spool import PartialFeatures, writing
from cmd_eval.features.store import BACKBONE_FEATURES, Features, check_identity, read_features
from cmd_eval.results.schema import DEFAULT_CLIPS, Provenance
from cmd_extract.schema import VideoEntry
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import Checkpoint, load_checkpoint
from cmd_train.checkpoints.published import load_named
from cmd_train.config import TrainConfig, config_from_dict
from cmd_train.distributed.process_group import process_group
from cmd_train.models.backbones import Backbone
from cmd_train.models.build import build_model

Progress = Callable[[int, int], None]

_BACKBONE = "backbone."


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """The network to embed videos with, and how.

    Attributes:
        checkpoint: a checkpoint, or a run's folder for its last checkpoint.
        untrained: use the randomly initialized weights of the same seed instead of the trained ones.
        clips: clips per video.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: number of decoding processes; 0 decodes in this process.
    """

    checkpoint: Path
    untrained: bool = False
    clips: int = DEFAULT_CLIPS
    device: str = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise ValueError(f"clips: {self.clips} is not at least 1")
        if self.workers < 0:
            raise ValueError(f"workers: {self.workers} is negative")


def load_backbone(checkpoint: Checkpoint, config: TrainConfig, *, untrained: bool = False) -> Backbone:
    """Return the backbone of a checkpoint, with its weights or with the initial weights of the same seed.

    Raises:
        ValueError: the names or shapes of the weights do not match the configured backbone.
    """
    backbone = build_model(config.model, seed=config.run.seed).backbone
    if not untrained:
        weights = checkpoint.weights
        load_named(backbone, {n.removeprefix(_BACKBONE): t for n, t in weights.items() if n.startswith(_BACKBONE)})
    return backbone


def embed_videos(
    backbone: Backbone, shards: ShardSet, entries: Sequence[VideoEntry], protocol: ClipProtocol
) -> Iterator[NDArray[np.float32]]:
    """Yield the pooled features of the clips of each video, (N, F) float32.

    Args:
        backbone: the network.
        shards: the shards that contain the videos.
        entries: the videos.
        protocol: clips, crop and device.

    Raises:
        ValueError: the features of a video are not finite.
    """
    for entry, output_NF in run_on_clips(backbone, lambda clips: backbone(clips).pooled_BC, shards, entries, protocol):
        feature_NF = output_NF.float().cpu().numpy()
        if not np.isfinite(feature_NF).all():
            raise ValueError(
                f"{entry.video_id}: the network's features are not finite; its training run has diverged or its "
                "weights are damaged: use another checkpoint"
            )
        yield feature_NF


def describe_model(
    checkpoint: Checkpoint, shards: ShardSet, config: EmbeddingConfig, command: str, seed: int = 0
) -> Provenance:
    """Return the provenance of features of a checkpoint."""
    return Provenance(
        command=command,
        shards=str(shards.folder.resolve()),
        data_hash=shards.data_hash,
        features=BACKBONE_FEATURES,
        checkpoint=str(checkpoint.path.resolve()),
        checkpoint_sha256=checkpoint.weights_hash,
        trained_on=checkpoint.config.get("data_hash"),
        step=checkpoint.step,
        began_from=checkpoint.config.get("init"),
        untrained=config.untrained,
        settings=checkpoint.config["settings"],
        seed=seed,
        clips=config.clips,
        pretext=checkpoint.load_state().get("recent_metrics", {}),
    )


def embed_to_file(
    path: Path, config: EmbeddingConfig, shards: ShardSet, command: str, progress: Progress, *, fresh: bool = False
) -> Features:
    """Return the features of all videos of a shard set from a file, which is computed or completed if necessary.

    Args:
        path: the features file. While it is incomplete, its content is in a file with the suffix ``.partial``.
        config: the network and how to embed with it.
        shards: the videos.
        command: command line, recorded as provenance.
        progress: called with (videos done, total videos).
        fresh: recompute features that exist. The existing file is replaced once the new one is complete.

    Raises:
        FeatureError: the file contains other features, or another process is writing it.
        ValueError: there is no such checkpoint, or it does not fit the network.
        RuntimeError: a video is damaged; the features computed so far are kept.
    """
    checkpoint = load_checkpoint(config.checkpoint)
    provenance = describe_model(checkpoint, shards, config, command)
    if path.exists() and not fresh:
        return _read_matching(path, provenance)
    settings = config_from_dict(checkpoint.config["settings"])
    backbone = load_backbone(checkpoint, settings, untrained=config.untrained)
    with process_group(config.device) as context, writing(path):
        if path.exists() and not fresh:  # another process has completed it in the meantime
            return _read_matching(path, provenance)
        videos, width = VideoTable.of(shards.videos), backbone.feature_channels
        with PartialFeatures(path, videos, provenance, config.clips, width, fresh=fresh) as partial:
            protocol = ClipProtocol.of(settings, clips=config.clips, device=context.device, workers=config.workers)
            for feature_NF in embed_videos(backbone, shards, shards.videos[partial.done :], protocol):
                partial.append(feature_NF)
                progress(partial.done, len(videos))
            partial.finish()
    return read_features(path)


def _read_matching(path: Path, expected: Provenance) -> Features:
    features = read_features(path)
    check_identity(features, expected)
    return features
