"""Embed videos with a network: the features of each clip, written to a features file.

Shape legend: N clips of a video, F features.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cmd_eval.data.table import VideoTable
from cmd_eval.features.clips import PREPROCESSING_VERSION, ClipProtocol, Precision, run_on_clips
from cmd_eval.features.readout import (
    DEFAULT_READOUT,
    DIRECTION_FEATURES,
    GRID_FEATURES,
    POOLED_FEATURES,
    READOUTS,
    ReadoutName,
)
from cmd_eval.features.spool import PartialFeatures, create_partial, share_of, writing
from cmd_eval.features.store import Features, check_identity, read_features
from cmd_eval.results.schema import DEFAULT_CLIPS, Provenance
from cmd_extract.shard.folders import join_paths
from cmd_extract.shard.reader import ShardSet
from cmd_extract.shard.videos import Videos
from cmd_extract.system.process import allotted_cores
from cmd_train.checkpoints.files import Checkpoint, load_checkpoint
from cmd_train.checkpoints.initial import BACKBONE_PREFIX, MOTION_PREFIX
from cmd_train.checkpoints.published import load_submodule
from cmd_train.config import TrainConfig, config_from_dict
from cmd_train.distributed.process_group import RankContext, any_rank, process_group
from cmd_train.models.backbones import Backbone, BackboneOutput
from cmd_train.models.build import build_model
from cmd_train.models.config import ModelConfig
from cmd_train.models.heads import DirectionHead

Progress = Callable[[int, int], None]

_GRID = 2
"""Positions per side of the readout ``grid``."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """The network to embed videos with, and how.

    Attributes:
        checkpoint: a checkpoint, or a run's folder for its last checkpoint.
        untrained: use the randomly initialized weights of the same seed instead of the trained ones.
        clips: clips per video.
        readout: see ``cmd_eval.features.readout``.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: number of decoding processes; 0 decodes in this process, None means one for each core.
        precision: ``float32``, or ``bf16`` for mixed precision.
        batch_size: clips per batch; None for the default of the device.
    """

    checkpoint: Path
    untrained: bool = False
    clips: int = DEFAULT_CLIPS
    readout: ReadoutName = DEFAULT_READOUT
    device: str = "auto"
    workers: int | None = 0
    precision: Precision = "float32"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise ValueError(f"clips: {self.clips} is not at least 1")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers: {self.workers} is negative")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size: {self.batch_size} is not at least 1")


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
    """A backbone, with its direction head if needed, that maps clips to the features of a readout.

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
            f"{checkpoint.path}: the readout 'directions' needs a network that was trained to predict directions "
            "(loss.motion_target=directions); choose another --readout"
        )
    model = build_model(config.model, seed=config.run.seed)
    assert isinstance(model.motion, DirectionHead)
    if not untrained:
        load_submodule(model.backbone, checkpoint.weights, BACKBONE_PREFIX)
        load_submodule(model.motion, checkpoint.weights, MOTION_PREFIX)
    return ClipNetwork(model.backbone, config.model, features, model.motion)


def embed_videos(
    network: ClipNetwork,
    shards: ShardSet,
    entries: Videos,
    protocol: ClipProtocol,
    rows: range | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Yield the features of the clips of each video, (N, F) float32.

    Args:
        network: the network.
        shards: the shards that contain the videos.
        entries: the videos.
        protocol: clips, crop, device and batch size.
        rows: range of the videos to embed; None for all.

    Raises:
        ValueError: the features of a video are not finite.
    """
    first, stop = (0, None) if rows is None else (rows.start, rows.stop)
    for entry, output_NF in run_on_clips(network, network, shards, entries, protocol, first=first, stop=stop):
        feature_NF = output_NF.numpy()
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
        precision=config.precision,
        preprocessing=PREPROCESSING_VERSION,
        pretext=checkpoint.load_state().get("recent_metrics", {}),
    )


def embed_to_file(
    path: Path, config: EmbeddingConfig, shards: ShardSet, command: str, progress: Progress, *, fresh: bool = False
) -> Features:
    """Return the features of all videos of a shard set from a file, which is computed or completed if necessary.

    Each of several processes, started by torchrun or srun, embeds its share of the missing videos.

    Args:
        path: the features file. While it is incomplete, its content is in a file with the suffix ``.partial``.
        config: the network and how to embed with it.
        shards: the videos.
        command: command line, recorded as provenance.
        progress: called in the main process with (videos done, total videos) of its share.
        fresh: recompute features that exist. The existing file is replaced once the new one is complete.

    Raises:
        FeatureError: the file contains other features, or another process is writing it.
        ValueError: there is no such checkpoint, or it does not fit the network.
        RuntimeError: a video is damaged, or another process failed; the features computed so far are kept.
    """
    checkpoint = load_checkpoint(config.checkpoint)
    provenance = describe_model(checkpoint, shards, config, command)
    with process_group(config.device) as context:

        def is_complete() -> bool:
            # The main process decides, since another run may complete the file between two checks.
            return any_rank((context.is_main and path.exists() and not fresh,), context)[0]

        if not is_complete():
            settings = config_from_dict(checkpoint.config["settings"])
            network = load_clip_network(checkpoint, settings, provenance.features, untrained=config.untrained)
            protocol = _protocol(config, settings, context)
            with writing(path) if context.is_main else nullcontext():
                if not is_complete():
                    if context.is_main:
                        videos = VideoTable.of(shards.videos)
                        create_partial(path, videos, provenance, config.clips, network.width, fresh=fresh)
                    _fill(path, network, shards, protocol, context, progress)
    features = read_features(path)
    check_identity(features, provenance)
    return features


def _protocol(config: EmbeddingConfig, settings: TrainConfig, context: RankContext) -> ClipProtocol:
    return ClipProtocol.of(
        settings,
        clips=config.clips,
        device=context.device,
        workers=default_workers() if config.workers is None else config.workers,
        precision=config.precision,
        batch_size=config.batch_size,
    )


def default_workers() -> int:
    """Return the number of cores of this process: its share of those of the machine, container or Slurm job."""
    import joblib

    return max(1, allotted_cores(os.environ, joblib.cpu_count()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _wait_for_all(context: RankContext) -> None:
    any_rank((False,), context)


def _fill(
    path: Path, network: ClipNetwork, shards: ShardSet, protocol: ClipProtocol, context: RankContext, progress: Progress
) -> None:
    """Compute this process's share of the missing videos, then finish the file."""
    _wait_for_all(context)  # until the main process has created the partial file
    with PartialFeatures(path) as partial:
        _wait_for_all(context)  # until each process knows what is missing: their shares must not overlap
        share = share_of(partial.missing, context.rank, context.world_size)
        done, total = 0, sum(map(len, share))
        for rows in share:
            for row, feature_NF in zip(rows, embed_videos(network, shards, shards.videos, protocol, rows), strict=True):
                partial.write(row, feature_NF)
                done += 1
                if context.is_main:
                    progress(done, total)
        _wait_for_all(context)
        if context.is_main:
            partial.finish()
