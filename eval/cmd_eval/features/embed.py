"""Embed videos with a network: the features of each clip, written to a features file.

Shape legend: N clips of a video, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cmd_eval.data.table import VideoTable
from cmd_eval.features.clips import ClipProtocol, run_on_clips
from cmd_eval.features.readout import (
    DEFAULT_READOUT,
    DIRECTION_FEATURES,
    GRID_FEATURES,
    POOLED_FEATURES,
    READOUTS,
    ReadoutName,
)
from cmd_eval.features.spool import PartialFeatures, writing
from cmd_eval.features.store import Features, check_identity, read_features
from cmd_eval.results.schema import DEFAULT_CLIPS, Provenance
from cmd_extract.schema import VideoEntry
from cmd_extract.shard.folders import join_paths
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import Checkpoint, load_checkpoint
from cmd_train.checkpoints.initial import BACKBONE_PREFIX, MOTION_PREFIX
from cmd_train.checkpoints.published import load_submodule
from cmd_train.config import TrainConfig, config_from_dict
from cmd_train.distributed.process_group import process_group
from cmd_train.models.backbones import Backbone, BackboneOutput
from cmd_train.models.build import build_model
from cmd_train.models.config import ModelConfig
from cmd_train.models.heads import DirectionHead

Progress = Callable[[int, int], None]

_GRID = 2
"""Places per side of the read-out ``grid``."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """The network to embed videos with, and how.

    Attributes:
        checkpoint: a checkpoint, or a run's folder for its last checkpoint.
        untrained: use the randomly initialized weights of the same seed instead of the trained ones.
        clips: clips per video.
        readout: see ``cmd_eval.features.readout``.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: number of decoding processes; 0 decodes in this process.
    """

    checkpoint: Path
    untrained: bool = False
    clips: int = DEFAULT_CLIPS
    readout: ReadoutName = DEFAULT_READOUT
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
        load_submodule(backbone, checkpoint.weights, BACKBONE_PREFIX)
    return backbone


class ClipNetwork(nn.Module):
    """A backbone, with its direction head if needed, that maps clips to the features of a read-out.

    Args:
        backbone: the backbone.
        config: configuration of the network.
        features: kind of features, one of ``NETWORK_FEATURES``.
        head: direction head; required for ``DIRECTION_FEATURES``.

    Attributes:
        width: number of features F per clip.
    """

    def __init__(
        self, backbone: Backbone, config: ModelConfig, features: str, head: DirectionHead | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.head, self._features = backbone, head, features
        steps = config.token_grid[0]
        self.width = {
            POOLED_FEATURES: backbone.feature_channels,
            GRID_FEATURES: backbone.token_channels * steps * _GRID**2,
            DIRECTION_FEATURES: (config.directions + 1) * config.window_parts,
        }[features]

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Map clips (B, 3, T, H, W), normalized RGB, to features (B, F)."""
        encoded: BackboneOutput = self.backbone(clip_BCTHW)
        if self._features == POOLED_FEATURES:
            return encoded.pooled_BC
        tokens_BCTHW = encoded.tokens_BCTHW
        if self._features == GRID_FEATURES:
            return F.adaptive_avg_pool3d(tokens_BCTHW, (tokens_BCTHW.shape[2], _GRID, _GRID)).flatten(1)
        assert self.head is not None
        score_BKQHW: Tensor = self.head(tokens_BCTHW)
        return score_BKQHW.float().softmax(1).mean((3, 4)).flatten(1)


def load_clip_network(
    checkpoint: Checkpoint, config: TrainConfig, features: str, *, untrained: bool = False
) -> ClipNetwork:
    """Return the network of a checkpoint that computes features of a kind.

    Raises:
        ValueError: the weights do not match the configuration, or the network predicts no directions.
    """
    if features != DIRECTION_FEATURES:
        return ClipNetwork(load_backbone(checkpoint, config, untrained=untrained), config.model, features)
    if not config.model.predicts_directions:
        raise ValueError(
            f"{checkpoint.path}: the read-out 'directions' needs a network that was trained to predict directions "
            "(loss.motion_target=directions); choose another --readout"
        )
    model = build_model(config.model, seed=config.run.seed)
    assert isinstance(model.motion, DirectionHead)
    if not untrained:
        load_submodule(model.backbone, checkpoint.weights, BACKBONE_PREFIX)
        load_submodule(model.motion, checkpoint.weights, MOTION_PREFIX)
    return ClipNetwork(model.backbone, config.model, features, model.motion)


def embed_videos(
    network: ClipNetwork, shards: ShardSet, entries: Sequence[VideoEntry], protocol: ClipProtocol
) -> Iterator[NDArray[np.float32]]:
    """Yield the features of the clips of each video, (N, F) float32.

    Args:
        network: the network.
        shards: the shards that contain the videos.
        entries: the videos.
        protocol: clips, crop and device.

    Raises:
        ValueError: the features of a video are not finite.
    """
    for entry, output_NF in run_on_clips(network, network, shards, entries, protocol):
        feature_NF = output_NF.float().cpu().numpy()
        if not np.isfinite(feature_NF).all():
            raise ValueError(
                f"{entry.video_id}: the network's features are not finite; its training run has diverged or its "
                "weights are damaged: use another checkpoint"
            )
        yield feature_NF


def describe_model(checkpoint: Checkpoint, shards: ShardSet, config: EmbeddingConfig, command: str) -> Provenance:
    """Return the provenance of features of a checkpoint."""
    return Provenance(
        command=command,
        shards=join_paths(shards.folders),
        data_hash=shards.data_hash,
        features=READOUTS[config.readout].features,
        readout=config.readout,
        checkpoint=str(checkpoint.path.resolve()),
        checkpoint_sha256=checkpoint.weights_hash,
        trained_on=checkpoint.config.get("data_hash"),
        step=checkpoint.step,
        initial_weights=checkpoint.config.get("init"),
        untrained=config.untrained,
        settings=checkpoint.config["settings"],
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
    network = load_clip_network(checkpoint, settings, provenance.features, untrained=config.untrained)
    with process_group(config.device) as context, writing(path):
        if path.exists() and not fresh:  # another process has completed it in the meantime
            return _read_matching(path, provenance)
        videos, width = VideoTable.of(shards.videos), network.width
        with PartialFeatures(path, videos, provenance, config.clips, width, fresh=fresh) as partial:
            protocol = ClipProtocol.of(settings, clips=config.clips, device=context.device, workers=config.workers)
            for feature_NF in embed_videos(network, shards, shards.videos[partial.done :], protocol):
                partial.append(feature_NF)
                progress(partial.done, len(videos))
            partial.finish()
    return read_features(path)


def _read_matching(path: Path, expected: Provenance) -> Features:
    features = read_features(path)
    check_identity(features, expected)
    return features
