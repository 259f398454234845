"""Runs a retrieval evaluation: checkpoint and shards in, result table out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval.embed import embed_videos
from eval.retrieval import RetrievalResult, check_leakage, retrieve, select_part
from extract.shard_reader import ShardSet
from train.checkpoint import Checkpoint, load_checkpoint
from train.config import TrainConfig, config_from_dict
from train.distributed import process_group
from train.model import PretrainModel
from train.pretrain import build_model


@dataclass(frozen=True, kw_only=True)
class RetrievalRequest:
    """What to evaluate.

    Attributes:
        checkpoint: a checkpoint, or a training's folder for its last one.
        shards: folder of shards.
        split_column: split column of the manifest.
        query_part, gallery_part: its parts.
        kinds: ``label``, ``group`` or both.
        clips: clips a video.
        untrained: evaluate the network as it was before training instead, from the same seed.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: decoding processes.
    """

    checkpoint: Path
    shards: Path
    split_column: str
    query_part: str = "test"
    gallery_part: str = "train"
    kinds: Sequence[str] = ("label",)
    clips: int = 10
    untrained: bool = False
    device: str = "auto"
    workers: int = 0


def run_retrieval(
    request: RetrievalRequest, progress: Callable[[int, int], None]
) -> tuple[tuple[RetrievalResult, ...], dict[str, Any]]:
    """Embeds both parts and retrieves.

    Returns:
        One result a label kind, and everything for the JSON file.

    Raises:
        ValueError: the split, a part or the checkpoint does not exist, or a query is in the gallery.
    """
    checkpoint = load_checkpoint(request.checkpoint)
    config = config_from_dict(checkpoint.config["settings"])
    model = load_model(checkpoint, config, untrained=request.untrained)
    shards = ShardSet(request.shards)
    queries = select_part(shards.videos, request.split_column, request.query_part, request.kinds)
    gallery = select_part(shards.videos, request.split_column, request.gallery_part, request.kinds)
    query_entries, gallery_entries = ([shards.videos[i] for i in part] for part in (queries, gallery))
    check_leakage(query_entries, gallery_entries)
    with process_group(request.device) as placement:
        features = embed_videos(
            model.backbone,
            shards,
            query_entries + gallery_entries,
            sampling=config.sampling,
            crop_size=config.model.crop_size,
            clips=request.clips,
            device=placement.device,
            workers=request.workers,
            progress=progress,
        )
    query_QF, gallery_GF = features[: len(queries)], features[len(queries) :]
    results = tuple(retrieve(query_QF, gallery_GF, query_entries, gallery_entries, kind) for kind in request.kinds)
    return results, _record(request, checkpoint, shards, results)


def load_model(checkpoint: Checkpoint, config: TrainConfig, *, untrained: bool = False) -> PretrainModel:
    """The network of a checkpoint, with its weights or with those it started from."""
    model = build_model(config)
    if not untrained:
        model.load_state_dict(checkpoint.weights)
    return model


def _record(
    request: RetrievalRequest, checkpoint: Checkpoint, shards: ShardSet, results: Sequence[RetrievalResult]
) -> dict[str, Any]:
    return {
        "checkpoint": str(checkpoint.path),
        "checkpoint_sha256": checkpoint.weights_hash,
        "step": checkpoint.step,
        "untrained": request.untrained,
        "pretext": checkpoint.load_state()["recent_metrics"],
        "settings": checkpoint.config["settings"],
        "trained_on": checkpoint.config["data_hash"],
        "shards": str(request.shards),
        "data_hash": shards.data_hash,
        "seed": checkpoint.config["settings"]["run"]["seed"],
        "split_column": request.split_column,
        "query_part": request.query_part,
        "gallery_part": request.gallery_part,
        "clips": request.clips,
        "torch": torch.__version__,
        "results": [result.as_json() for result in results],
    }


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file under a temporary name and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
