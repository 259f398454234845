"""Embeds videos: evenly spaced clips, centre crop, the backbone's pooled feature of each clip.

Shape legend: V videos, N clips of each, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from cmd_eval.data.table import VideoTable
from cmd_eval.features.spool import EmbeddingSpool
from cmd_eval.features.store import BACKBONE_FEATURES, FeatureError, Features, identity, read_features, write_features
from cmd_eval.results.schema import DEFAULT_CLIPS, Provenance
from cmd_extract.schema import VideoEntry
from cmd_extract.shard.reader import ShardSet
from cmd_train.augment.apply import center_crop
from cmd_train.checkpoints.files import Checkpoint, load_checkpoint
from cmd_train.checkpoints.published import load_named
from cmd_train.config import TrainConfig, config_from_dict
from cmd_train.data.batch import collate_eval
from cmd_train.data.dataset import EvalDataset
from cmd_train.data.sampling import SamplingConfig
from cmd_train.distributed.process_group import process_group
from cmd_train.models.backbones import Backbone
from cmd_train.models.build import build_model

Progress = Callable[[int, int], None]

PARTIAL_ENDING = ".partial"
"""Added to the name of a features file that is not complete yet."""

_CLIPS_AT_ONCE = 16
_BACKBONE = "backbone."


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Whose features to take, and how to compute them.

    Attributes:
        checkpoint: a checkpoint, or a training's folder for its last one.
        untrained: the network as it was before training instead, from the same seed.
        clips: clips a video.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: decoding processes; 0 decodes in this one.
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
    """The backbone of a checkpoint, with its weights or with those that its seed gives.

    Raises:
        ValueError: the checkpoint's names or shapes are not those of the configured backbone.
    """
    backbone = build_model(config.model, seed=config.run.seed).backbone
    if not untrained:
        weights = checkpoint.weights
        own = {name.removeprefix(_BACKBONE): t for name, t in weights.items() if name.startswith(_BACKBONE)}
        load_named(backbone, own)
    return backbone


@torch.inference_mode()
def embed_videos(
    backbone: Backbone,
    shards: ShardSet,
    entries: Sequence[VideoEntry],
    *,
    sampling: SamplingConfig,
    crop_size: int,
    clips: int,
    device: torch.device,
    workers: int,
) -> Iterator[NDArray[np.float32]]:
    """Features of whole videos, one after the other.

    Args:
        backbone: in whatever mode; evaluation mode is set.
        shards: where the frames lie.
        entries: the videos.
        sampling: clip length and stride.
        crop_size: side of the input in pixels.
        clips: clips N a video, at equal spacing.
        device: where to compute.
        workers: decoding processes; 0 decodes in this one.

    Yields:
        (N, F) float32 of each video: the pooled feature of each clip. No video's depend on which others there are.

    Raises:
        ValueError: the network gives a video features that are not finite.
    """
    backbone.to(device).eval()
    dataset = EvalDataset(shards, entries, sampling, clips)
    loader = DataLoader(dataset, batch_size=1, num_workers=workers, collate_fn=collate_eval)
    for entry, batch in zip(entries, loader, strict=True):
        clips_u8 = batch.clips_u8_BNTHWC.to(device).flatten(0, 1)
        parts = [backbone(center_crop(part, crop_size)).pooled_BC for part in torch.split(clips_u8, _CLIPS_AT_ONCE)]
        feature_NF = torch.cat(parts).float().cpu().numpy()
        if not np.isfinite(feature_NF).all():
            raise ValueError(
                f"{entry.video_id}: the network's features are not finite; its training has diverged or its weights "
                "are damaged, take another checkpoint"
            )
        yield feature_NF


def describe_model(
    checkpoint: Checkpoint, shards: ShardSet, choice: ModelChoice, command: str, seed: int = 0
) -> Provenance:
    """What features of a checkpoint are made of and by."""
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
        untrained=choice.untrained,
        settings=checkpoint.config["settings"],
        seed=seed,
        clips=choice.clips,
        pretext=checkpoint.load_state().get("recent_metrics", {}),
    )


def embed_to_file(
    path: Path, choice: ModelChoice, shards: ShardSet, command: str, progress: Progress, *, fresh: bool = False
) -> Features:
    """The features of all videos of a shard set, in a file: read if they are there, made or continued if not.

    Args:
        path: the features file. Beside it, while it is being made, lies what is done so far.
        choice: whose features.
        shards: the videos.
        command: recorded as what made the file.
        progress: called with (videos done, all videos).
        fresh: make them anew even if they, or others, are there. The file that is there stays until the new one is
            whole.

    Raises:
        FeatureError: the file holds something else, or another process is making it.
        ValueError: there is no such checkpoint, or it does not fit the network.
        RuntimeError: a video is damaged; what is done so far is kept.
    """
    checkpoint = load_checkpoint(choice.checkpoint)
    provenance = describe_model(checkpoint, shards, choice, command)
    if path.exists() and not fresh:
        return _read_same(path, provenance)
    config = config_from_dict(checkpoint.config["settings"])
    backbone = load_backbone(checkpoint, config, untrained=choice.untrained)
    partial = path.with_name(path.name + PARTIAL_ENDING)
    entries = shards.videos
    with (
        process_group(choice.device) as placement,
        EmbeddingSpool(partial, identity(provenance), choice.clips, backbone.feature_channels, fresh=fresh) as spool,
    ):
        # Of this name as long as the spool is locked: what a killed run has left is overwritten.
        temporary = path.with_name(f".tmp-{path.name}")
        temporary.unlink(missing_ok=True)
        if path.exists() and not fresh:
            # Another process has made it in the meantime.
            spool.remove()
            return _read_same(path, provenance)
        if spool.done < len(entries):
            features = embed_videos(
                backbone,
                shards,
                entries[spool.done :],
                sampling=config.sampling,
                crop_size=config.model.crop_size,
                clips=choice.clips,
                device=placement.device,
                workers=choice.workers,
            )
            for feature_NF in features:
                spool.append(feature_NF)
                progress(spool.done, len(entries))
        videos = VideoTable.of(entries)
        width = backbone.feature_channels
        write_features(path, videos, provenance, spool.blocks(), choice.clips, width, temporary=temporary)
        spool.remove()
    return read_features(path)


def _read_same(path: Path, wanted: Provenance) -> Features:
    found = read_features(path)
    check_same(found, wanted)
    return found


def check_same(found: Features, wanted: Provenance) -> None:
    """Refuses a features file that was made of other data, by other weights, or of another number of clips.

    Raises:
        FeatureError: names what differs.
    """
    have, need = identity(found.provenance), identity(wanted)
    unequal = [f"{name} {_short(have[name])}, need {_short(need[name])}" for name in need if have[name] != need[name]]
    if unequal:
        raise FeatureError(
            f"{found.path}: holds other features ({'; '.join(unequal)}); "
            "remove it or give --fresh to make them anew, or give another file"
        )


def _short(value: object) -> str:
    text = str(value)
    return text[:8] if len(text) == 64 else text
