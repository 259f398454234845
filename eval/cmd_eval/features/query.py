"""Extract and embed a query video that is not in the shards, with the settings of the shards."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from cmd_eval.features.clips import ClipProtocol
from cmd_eval.features.embed import ClipNetwork, embed_videos, load_clip_network
from cmd_eval.features.readout import NETWORK_FEATURES, READOUTS, Readout, ReadoutName
from cmd_eval.features.store import FeatureError, Features, display_name, mean_over_clips
from cmd_extract.schema import FAILURES_NAME, ShardHeader
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import load_checkpoint
from cmd_train.config import TrainConfig, config_from_dict
from cmd_train.distributed.process_group import process_group
from cmd_train.monitoring.neighbors import nearest

# The command of this interpreter's environment; -P keeps modules in the working directory from being imported.
_CMD_EXTRACT = (sys.executable, "-P", "-c", "from cmd_extract.cli.main import main; main(prog_name='cmd-extract')")
_EXIT_WITH_FAILURES = 3


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """A network with the settings it embeds videos with.

    Attributes:
        network: the network.
        config: its training configuration.
        clips: clips per video.
        readout: how its clips become one feature.
    """

    network: ClipNetwork
    config: TrainConfig
    clips: int
    readout: Readout


def extract_query(video: Path, header: ShardHeader, folder: Path) -> ShardSet:
    """Extract a video file with the settings of existing shards.

    The video is not divided into segments, even if those of the shards are.

    Args:
        video: the file.
        header: header of the shards that it will be compared with.
        folder: an empty folder for the output.

    Returns:
        A shard set of one video.

    Raises:
        ValueError: the video cannot be extracted.
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
        raise ValueError(f"{video}: cannot be extracted ({failure['stage']}: {failure['reason']}); use another file")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        why = lines[-1].removeprefix("Error: ") if lines else f"exit code {done.returncode}"
        raise RuntimeError(f"{video}: cmd-extract failed: {why}")
    return ShardSet(out)


def extract_options(config: Mapping[str, Any]) -> list[str]:
    """Return the options of ``cmd-extract run`` that reproduce the configuration of shards."""
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
    """Load the network that computed features.

    Args:
        features: the features.
        checkpoint: current path of the checkpoint; None for the recorded one.

    Raises:
        FeatureError: the features were not computed by a checkpoint, or by another one.
        ValueError: there is no such checkpoint.
    """
    provenance = features.provenance
    if provenance.features not in NETWORK_FEATURES or provenance.checkpoint is None:
        raise FeatureError(
            f"{features.path}: contains {display_name(provenance.features)} features, not those of a checkpoint; "
            "create them with `cmd-eval embed CHECKPOINT SHARDS OUT.h5`"
        )
    place = checkpoint or Path(provenance.checkpoint)
    if not place.exists():
        raise FeatureError(
            f"{place}: the checkpoint of {features.path} no longer exists; pass its new path with --checkpoint"
        )
    loaded = load_checkpoint(place)
    if loaded.weights_hash != provenance.checkpoint_sha256:
        raise FeatureError(
            f"{loaded.path}: not the checkpoint of {features.path} (SHA-256 of the weights "
            f"{loaded.weights_hash[:8]}, expected {str(provenance.checkpoint_sha256)[:8]}); "
            "pass the right one with --checkpoint"
        )
    config = config_from_dict(loaded.config["settings"])
    network = load_clip_network(loaded, config, provenance.features, untrained=provenance.untrained)
    readout = READOUTS[cast(ReadoutName, provenance.readout)]
    return Embedder(network=network, config=config, clips=provenance.clips or 1, readout=readout)


def embed_query(embedder: Embedder, query: ShardSet, device: str) -> NDArray[np.float32]:
    """Embed a query video as the videos of a features file.

    Args:
        embedder: the network.
        query: a shard set of one video.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        (1, F) float32.
    """
    with process_group(device) as context:
        protocol = ClipProtocol.of(embedder.config, clips=embedder.clips, device=context.device)
        (clips_NF,) = embed_videos(embedder.network, query, query.videos, protocol)
    return clips_NF.reshape(1, -1) if embedder.readout.ordered else mean_over_clips(clips_NF)[None]


def nearest_others_of(features: Features, row: int, count: int) -> list[tuple[int, float]]:
    """Return the videos nearest to one video of the features, without itself, nearest first.

    Args:
        features: the features.
        row: row of the query.
        count: number of videos; all others if there are fewer.

    Returns:
        Row and cosine similarity of each.
    """
    all_rows = features.rows(np.arange(len(features.videos)))
    similarity, rows = nearest(features.rows(np.array([row]))[:], all_rows, min(count + 1, len(all_rows)))
    found = zip(rows[0].tolist(), similarity[0].tolist(), strict=True)
    return [(other, value) for other, value in found if other != row][:count]
