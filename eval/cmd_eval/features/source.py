"""Where the features of an evaluation come from: a features file, or a checkpoint, whose features its run keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cmd_eval.features.embed import ModelChoice, embed_to_file
from cmd_eval.features.store import FeatureError, Features, read_features
from cmd_eval.results.schema import DEFAULT_CLIPS, EVAL_FOLDER, Provenance
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import FOLDER_NAME, find_checkpoint, list_checkpoints
from cmd_train.config import config_from_dict
from cmd_train.data.sampling import SamplingConfig
from cmd_train.data.sampling_report import SamplingReport

FEATURES_SUFFIX = ".h5"


@dataclass(frozen=True, kw_only=True)
class FeatureSource:
    """What the user names as features.

    Attributes:
        source: a features file, or a checkpoint or a training's folder.
        shards: folder of shards, for a checkpoint.
        untrained, clips, device, workers: as in ``ModelChoice``; for a checkpoint. None clips are the usual 10, or
            those of the features file.
        fresh: make the features of a checkpoint anew, even if they are there.
    """

    source: Path
    shards: Path | None = None
    untrained: bool = False
    clips: int | None = None
    device: str = "auto"
    workers: int = 0
    fresh: bool = False

    @property
    def choice(self) -> ModelChoice:
        """The checkpoint and how to embed with it."""
        return ModelChoice(
            checkpoint=self.source,
            untrained=self.untrained,
            clips=DEFAULT_CLIPS if self.clips is None else self.clips,
            device=self.device,
            workers=self.workers,
        )


def run_folder(checkpoint: Path) -> Path:
    """The training's folder that a checkpoint belongs to; a checkpoint that lies alone is its own."""
    folder = find_checkpoint(checkpoint).resolve()
    return folder.parent.parent if folder.parent.name == FOLDER_NAME else folder


def open_features(source: FeatureSource, command: str, progress: Callable[[int, int], None]) -> Features:
    """The features that the user names: read, or made and kept in the training's folder.

    Args:
        source: what is named.
        command: recorded as what made them, if they are made.
        progress: called with (videos done, all videos) while they are made.

    Raises:
        FeatureError: the file is none, or holds something else.
        ValueError: shards or checkpoint are missing or unfit.
    """
    if source.source.is_file():
        if source.shards is not None:
            raise FeatureError(f"{source.source}: a features file knows its videos; leave SHARDS away")
        if source.untrained or source.fresh:
            raise FeatureError(
                f"{source.source}: --untrained and --fresh go with a checkpoint, not with a features file"
            )
        found = read_features(source.source)
        if source.clips not in (None, found.provenance.clips):
            raise FeatureError(f"{source.source}: holds {found.provenance.clips} clips a video, not {source.clips}")
        return found
    if source.shards is None:
        raise FeatureError(f"{source.source}: with a checkpoint, SHARDS must be given, too")
    shards = ShardSet(source.shards)
    path = kept_features(source.source, shards.data_hash, untrained=source.untrained)
    return embed_to_file(path, source.choice, shards, command, progress, fresh=source.fresh)


def kept_features(checkpoint: Path, data_hash: str, *, untrained: bool) -> Path:
    """Where the features of a checkpoint are kept."""
    folder = find_checkpoint(checkpoint)
    words = ["untrained"] if untrained else _step_words(folder)
    return run_folder(folder) / EVAL_FOLDER / ("-".join(["embeddings", data_hash[:8], *words]) + FEATURES_SUFFIX)


def result_folder(features: Features) -> Path | None:
    """Where results of features belong: the folder of their training's results, else the one of their file."""
    checkpoint = features.provenance.checkpoint
    if checkpoint is not None and Path(checkpoint).is_dir():
        return run_folder(Path(checkpoint)) / EVAL_FOLDER
    return features.path.parent if features.path is not None else None


def short_notes(frame_counts: Iterable[int], sampling: SamplingConfig) -> list[str]:
    """Which videos are too short for the clips that the network was trained with."""
    report = SamplingReport.of_evaluation(frame_counts, sampling)
    if not report.stride_shrunk:
        return []
    return [
        f"{report.stride_shrunk} of {report.samples} videos are short: their clips' stride was lowered, "
        f"{report.clip_padded} also repeat the last frame"
    ]


def length_notes(features: Features) -> list[str]:
    """The same of features; empty for those of no network."""
    settings = features.provenance.settings
    return [] if settings is None else short_notes(features.videos.frame_counts, config_from_dict(settings).sampling)


def name_words(provenance: Provenance) -> list[str]:
    """What tells a result's file from that of the trained network's last checkpoint with the usual clips."""
    if provenance.checkpoint is None:
        return [provenance.features.replace(" ", "-")]
    words = ["untrained"] if provenance.untrained else _step_words(Path(provenance.checkpoint))
    return [*words, *clip_words(provenance.clips)]


def clip_words(clips: int | None) -> list[str]:
    """The same for the number of clips a video."""
    return [] if clips in (None, DEFAULT_CLIPS) else [f"{clips}-clips"]


def part_words(query_part: str, gallery_part: str) -> list[str]:
    """The same for the parts that ask and are found, or are tested and trained on."""
    return [] if (query_part, gallery_part) == ("test", "train") else [query_part, "in", gallery_part]


def _step_words(checkpoint: Path) -> list[str]:
    """The name of a checkpoint that is not its training's last one; nothing where that cannot be seen any more."""
    folder = checkpoint.resolve()
    saved = list_checkpoints(folder.parent.parent) if folder.parent.name == FOLDER_NAME else []
    return [] if not saved or saved[-1].resolve() == folder else [folder.name]


def provenance_of(features: Features, command: str, seed: int) -> Provenance:
    """Where the figures of a command on features come from."""
    return replace(features.provenance, command=command, seed=seed)


def unique(notes: Sequence[str]) -> list[str]:
    """Notes without repetitions, in order."""
    return list(dict.fromkeys(notes))
