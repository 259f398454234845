"""A video file that is not in the shards: extracted by ``cmd-extract`` as the shards were, then embedded."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmd_eval.features.embed import embed_videos, load_backbone
from cmd_eval.features.store import BACKBONE_FEATURES, FeatureError, Features, spoken_name
from cmd_extract.schema import FAILURES_NAME, ShardHeader
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import load_checkpoint
from cmd_train.config import TrainConfig, config_from_dict
from cmd_train.distributed.process_group import process_group
from cmd_train.models.backbones import Backbone

# As a user would start it, by this very interpreter, and deaf to an extract/ in the working directory (-P).
_CMD_EXTRACT = (sys.executable, "-P", "-c", "from cmd_extract.cli.main import main; main(prog_name='cmd-extract')")
_EXIT_WITH_FAILURES = 3


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """A network and how it looks at videos.

    Attributes:
        backbone: the network.
        config: its training's.
        clips: clips a video.
    """

    backbone: Backbone
    config: TrainConfig
    clips: int


def extract_query(video: Path, header: ShardHeader, folder: Path) -> ShardSet:
    """Extracts one video file as the videos of some shards were.

    The video is not cut into segments, even if those were.

    Args:
        video: the file.
        header: of the shards it will be compared with.
        folder: an empty folder for everything that is made.

    Returns:
        A shard set of one video.

    Raises:
        ValueError: the video cannot be extracted; the message says why.
        RuntimeError: ``cmd-extract`` failed for another reason.
    """
    manifest, out = folder / "query.csv", folder / "shards"
    with manifest.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        csv.writer(stream).writerows([("id", "path"), ("query", video.resolve())])
    command = [*_CMD_EXTRACT, "run", str(manifest), str(out), "--workers", "1", *extract_options(header.config)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == _EXIT_WITH_FAILURES:
        with (out / FAILURES_NAME).open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            failure = next(csv.DictReader(stream))
        raise ValueError(f"{video}: cannot be extracted ({failure['stage']}: {failure['reason']}); give another file")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        why = lines[-1].removeprefix("Error: ") if lines else f"exit code {done.returncode}"
        raise RuntimeError(f"{video}: cmd-extract failed: {why}")
    return ShardSet(out)


def extract_options(config: Mapping[str, Any]) -> list[str]:
    """The options of ``cmd-extract run`` that give a shard's configuration again."""
    options: dict[str, Any] = {
        "--size": f"{config['width']}x{config['height']}",
        "--codec": config["codec"],
        "--gop": config["gop"],
        "--quality": config["quality"],
        "--fps": config["fps"],
        "--frame-short-side": config["frame_short_side"],
        "--jpeg-quality": config["jpeg_quality"],
        "--cell": config["cell_px"],
        "--transcode": config["transcode"],
    }
    words = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return [*words, "--frames" if config["store_frames"] else "--no-frames"]


def load_embedder(features: Features, checkpoint: Path | None) -> Embedder:
    """The network that some features were made by.

    Args:
        features: the features.
        checkpoint: where the checkpoint lies now; None for where it lay when the features were made.

    Raises:
        FeatureError: the features are not of a checkpoint, or of another one.
        ValueError: there is no such checkpoint.
    """
    provenance = features.provenance
    if provenance.features != BACKBONE_FEATURES or provenance.checkpoint is None:
        raise FeatureError(
            f"{features.path}: holds features of the {spoken_name(provenance.features)}, not of a checkpoint; "
            "make some with `cmd-eval embed CHECKPOINT SHARDS OUT.h5`"
        )
    place = checkpoint or Path(provenance.checkpoint)
    if not place.exists():
        raise FeatureError(f"{place}: the checkpoint of {features.path} is not there any more; give --checkpoint")
    loaded = load_checkpoint(place)
    if loaded.weights_hash != provenance.checkpoint_sha256:
        raise FeatureError(
            f"{loaded.path}: not the checkpoint that {features.path} was made by (its weights' SHA-256 begins with "
            f"{loaded.weights_hash[:8]}, not {str(provenance.checkpoint_sha256)[:8]}); give the right --checkpoint"
        )
    config = config_from_dict(loaded.config["settings"])
    backbone = load_backbone(loaded, config, untrained=provenance.untrained)
    return Embedder(backbone=backbone, config=config, clips=provenance.clips or 1)


def embed_query(embedder: Embedder, query: ShardSet, device: str) -> NDArray[np.float32]:
    """The feature of a query video, made as other features were: the mean over clips.

    Args:
        embedder: the network.
        query: a shard set of one video.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        (1, F) float32.
    """
    with process_group(device) as placement:
        (clips_NF,) = embed_videos(
            embedder.backbone,
            query,
            query.videos,
            sampling=embedder.config.sampling,
            crop_size=embedder.config.model.crop_size,
            clips=embedder.clips,
            device=placement.device,
            workers=0,
        )
    feature_1F: NDArray[np.float32] = clips_NF.mean(axis=0, dtype=np.float64).astype(np.float32)[None]
    return feature_1F
