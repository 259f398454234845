"""Runs a retrieval evaluation: features of a checkpoint, or of the motion grids alone, in; result table out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.embed import embed_videos
from eval.motion_descriptor import describe_videos, standardise
from eval.retrieval import RetrievalResult, check_leakage, retrieve, select_labelled
from extract.schema import VideoEntry
from extract.shard_reader import ShardSet
from train.build import build_model
from train.checkpoint import Checkpoint, load_checkpoint
from train.config import TrainConfig, config_from_dict
from train.distributed import process_group
from train.model import PretrainModel
from train.sampling_report import SamplingReport
from train.selection import select_videos

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which videos look for which.

    Attributes:
        shards: folder of shards.
        split_column: split column of the manifest.
        query_part, gallery_part: its parts.
        kinds: ``label``, ``group`` or both.
    """

    shards: Path
    split_column: str
    query_part: str = "test"
    gallery_part: str = "train"
    kinds: Sequence[str] = ("label",)


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Whose features to compare.

    Attributes:
        checkpoint: a checkpoint, or a training's folder for its last one.
        untrained: the network as it was before training instead, from the same seed.
        clips: clips a video.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: decoding processes.
    """

    checkpoint: Path
    untrained: bool = False
    clips: int = 10
    device: str = "auto"
    workers: int = 0


@dataclass(frozen=True, kw_only=True)
class RetrievalRun:
    """What a retrieval evaluation gives.

    Attributes:
        results: one a label kind.
        record: everything for the JSON file.
        notes: what the user should know of the data, a line each.
    """

    results: tuple[RetrievalResult, ...]
    record: dict[str, Any]
    notes: tuple[str, ...]


class _Contest:
    """The videos of a question; refuses a query that is in the gallery."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.shards = ShardSet(question.shards)
        videos, column, kinds = self.shards.videos, question.split_column, question.kinds
        self.queries, silent_queries = select_labelled(videos, column, question.query_part, kinds)
        self.gallery, silent_gallery = select_labelled(videos, column, question.gallery_part, kinds)
        self.unlabelled = silent_queries + silent_gallery
        check_leakage(self.queries, self.gallery)

    @property
    def both(self) -> list[VideoEntry]:
        return self.queries + self.gallery

    def results(self, query_QF: Tensor, gallery_GF: Tensor) -> tuple[RetrievalResult, ...]:
        return tuple(retrieve(query_QF, gallery_GF, self.queries, self.gallery, kind) for kind in self.question.kinds)

    def record(self, results: Sequence[RetrievalResult]) -> dict[str, Any]:
        question = self.question
        return {
            "shards": str(question.shards),
            "data_hash": self.shards.data_hash,
            "split_column": question.split_column,
            "query_part": question.query_part,
            "gallery_part": question.gallery_part,
            "unlabelled_left_out": self.unlabelled,
            "results": [result.as_json() for result in results],
        }

    def notes(self) -> list[str]:
        text = f"{self.unlabelled} videos of the two parts lack the label and were left out"
        return [text] if self.unlabelled else []


def retrieve_by_model(question: Question, choice: ModelChoice, progress: Progress) -> RetrievalRun:
    """Embeds the videos of both parts with a checkpoint's backbone and retrieves.

    Raises:
        ValueError: the split, a part or the checkpoint does not exist, or a query is in the gallery.
    """
    checkpoint = load_checkpoint(choice.checkpoint)
    config = config_from_dict(checkpoint.config["settings"])
    model = load_model(checkpoint, config, untrained=choice.untrained)
    contest = _Contest(question)
    seen = count_trained_on(checkpoint, config, contest.shards, contest.queries)
    with process_group(choice.device) as placement:
        features = embed_videos(
            model.backbone,
            contest.shards,
            contest.both,
            sampling=config.sampling,
            crop_size=config.model.crop_size,
            clips=choice.clips,
            device=placement.device,
            workers=choice.workers,
            progress=progress,
        )
    results = contest.results(features[: len(contest.queries)], features[len(contest.queries) :])
    record = contest.record(results) | _describe_model(choice, checkpoint) | {"queries_trained_on": seen}
    report = SamplingReport.of_evaluation((entry.frame_count for entry in contest.both), config.sampling)
    return RetrievalRun(results=results, record=record, notes=(*contest.notes(), *_model_notes(report, seen)))


def retrieve_by_motion_grids(question: Question, progress: Progress) -> RetrievalRun:
    """Retrieves by the hand-made motion descriptor: no training, no pixels; see ``eval.motion_descriptor``.

    Raises:
        ValueError: the split or a part does not exist, or a query is in the gallery.
    """
    contest = _Contest(question)
    described = describe_videos(contest.shards, contest.both, progress)
    features = standardise(described[: len(contest.queries)], described[len(contest.queries) :])
    results = contest.results(*features)
    record = contest.record(results) | {"features": "motion descriptor", "untrained": False, "pretext": {}}
    return RetrievalRun(results=results, record=record, notes=tuple(contest.notes()))


def count_trained_on(
    checkpoint: Checkpoint, config: TrainConfig, shards: ShardSet, queries: Sequence[VideoEntry]
) -> int | None:
    """How many queries the checkpoint was trained on; None if it was trained on other shards, where nobody knows."""
    if checkpoint.config["data_hash"] != shards.data_hash:
        return None
    trained = {e.video_id for e in select_videos(shards.videos, config.data.split_column, config.data.part)}
    return sum(entry.video_id in trained for entry in queries)


def load_model(checkpoint: Checkpoint, config: TrainConfig, *, untrained: bool = False) -> PretrainModel:
    """The network of a checkpoint, with its weights or with those it started from."""
    model = build_model(config)
    if not untrained:
        # A fine-tuned one has a classifier as well, which retrieval does not ask.
        model.load_state_dict({n: t for n, t in checkpoint.weights.items() if not n.startswith("classifier.")})
    return model


def _model_notes(report: SamplingReport, seen: int | None) -> list[str]:
    notes = []
    if seen:
        notes.append(
            f"warning: the checkpoint was trained on {seen} of the queries; train with --split-column to avoid it"
        )
    if seen is None:
        notes.append("the checkpoint was trained on other shards; whether they held queries is not known")
    if report.stride_shrunk:
        notes.append(
            f"{report.stride_shrunk} of {report.samples} videos are short: their clips' stride was lowered, "
            f"{report.clip_padded} also repeat the last frame"
        )
    return notes


def _describe_model(choice: ModelChoice, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "features": "backbone, pooled",
        "checkpoint": str(checkpoint.path),
        "checkpoint_sha256": checkpoint.weights_hash,
        "trained_on": checkpoint.config["data_hash"],
        "step": checkpoint.step,
        "untrained": choice.untrained,
        "pretext": checkpoint.load_state()["recent_metrics"],
        "settings": checkpoint.config["settings"],
        "seed": checkpoint.config["settings"]["run"]["seed"],
        "clips": choice.clips,
        "torch": torch.__version__,
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
