"""Open features for an evaluation: a features file, or a checkpoint whose features are cached in its run's folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cmd_eval.features.clips import PREPROCESSING_VERSION, Precision
from cmd_eval.features.embed import EmbeddingConfig, embed_to_file
from cmd_eval.features.readout import (
    DEFAULT_READOUT,
    DIRECTION_FEATURES,
    GRID_FEATURES,
    READOUTS,
    ReadoutName,
    file_readout,
)
from cmd_eval.features.store import FeatureError, Features, is_imported, read_features, with_readout
from cmd_eval.results.schema import DEFAULT_CLIPS, EVAL_FOLDER, Provenance, clip_suffixes, readout_suffixes
from cmd_extract.shard.folders import Folders, open_folders
from cmd_train.checkpoints.files import FOLDER_NAME, find_checkpoint, follow_best, list_checkpoints
from cmd_train.config import config_from_dict
from cmd_train.data.sampling import SamplingConfig
from cmd_train.data.sampling_report import SamplingReport

FEATURES_SUFFIX = ".h5"
_FILE_SUFFIXES = {GRID_FEATURES: "grid", DIRECTION_FEATURES: "directions"}


@dataclass(frozen=True, kw_only=True)
class FeatureSource:
    """Features chosen by the user.

    Attributes:
        source: a features file, a checkpoint or a run's folder.
        shards: folders of shards, for a checkpoint.
        untrained, clips, readout, device, workers, precision, batch_size: as in ``EmbeddingConfig``, for a checkpoint.
            ``clips``, ``readout`` and ``precision`` of None mean 10, ``mean`` and ``float32``, or those of the features
            file.
        standardize: standardize each feature with the gallery's mean and standard deviation.
        fresh: recompute cached features of a checkpoint.
        eval_dir: folder for the features of a checkpoint; None for ``eval`` in the run's folder.
    """

    source: Path
    shards: Folders = ()
    untrained: bool = False
    clips: int | None = None
    readout: ReadoutName | None = None
    standardize: bool = False
    device: str = "auto"
    workers: int | None = 0
    precision: Precision | None = None
    batch_size: int | None = None
    fresh: bool = False
    eval_dir: Path | None = None

    @property
    def embedding(self) -> EmbeddingConfig:
        """The checkpoint and how to embed with it."""
        return EmbeddingConfig(
            checkpoint=self.source,
            untrained=self.untrained,
            clips=DEFAULT_CLIPS if self.clips is None else self.clips,
            readout=self.readout or DEFAULT_READOUT,
            device=self.device,
            workers=self.workers,
            precision=self.precision or "float32",
            batch_size=self.batch_size,
        )


def run_folder(checkpoint: Path) -> Path:
    """Return the run's folder of a checkpoint, or the checkpoint's own folder if it is not part of a run."""
    folder = find_checkpoint(checkpoint).resolve()
    return folder.parent.parent if folder.parent.name == FOLDER_NAME else folder


def open_features(source: FeatureSource, command: str, progress: Callable[[int, int], None]) -> Features:
    """Read the chosen features, or compute them and cache them in the run's folder, with the chosen readout.

    Args:
        source: the user's choice.
        command: command line, recorded as provenance if features are computed.
        progress: called with (videos done, total videos) while features are computed.

    Raises:
        FeatureError: the file is not a features file, or contains other features.
        ValueError: shards or checkpoint are missing or do not fit, or features would have to be computed in a folder
            that cannot be written to.
    """
    features = _open(source, command, progress)
    return replace(features, provenance=replace(features.provenance, standardized=source.standardize))


def _open(source: FeatureSource, command: str, progress: Callable[[int, int], None]) -> Features:
    source = replace(source, source=follow_best(source.source))
    if source.source.is_file():
        return _read_chosen(source)
    if not source.shards:
        raise FeatureError(f"{source.source}: SHARDS is required with a checkpoint")
    shards = open_folders(source.shards)
    readout = source.embedding.readout
    embedding = replace(source.embedding, readout=file_readout(readout))
    path = cached_features_path(
        source.source,
        shards.data_hash,
        untrained=source.untrained,
        readout=readout,
        clips=embedding.clips,
        precision=embedding.precision,
        folder=source.eval_dir,
    )
    if not path.is_file():
        require_writable(path.parent)
    return with_readout(embed_to_file(path, embedding, shards, command, progress, fresh=source.fresh), readout)


def _read_chosen(source: FeatureSource) -> Features:
    """Read a features file.

    Raises:
        FeatureError: it cannot be read, or other options require a checkpoint or other features.
    """
    path = source.source
    if source.shards:
        raise FeatureError(f"{path}: a features file already includes its videos; remove SHARDS")
    if source.untrained or source.fresh:
        raise FeatureError(f"{path}: --untrained and --fresh need a checkpoint, but this is a features file")
    if source.batch_size is not None:
        raise FeatureError(f"{path}: --batch-size needs a checkpoint, but this is a features file; remove it")
    features = read_features(path)
    if source.precision not in (None, features.provenance.precision):
        raise FeatureError(
            f"{path}: was computed in {features.provenance.precision}, not {source.precision}; remove --precision"
        )
    if source.clips not in (None, features.provenance.clips):
        raise FeatureError(
            f"{path}: contains {features.provenance.clips} clips per video, not {source.clips}; remove --clips"
        )
    return with_readout(features, source.readout)


def cached_features_path(
    checkpoint: Path,
    data_hash: str,
    *,
    untrained: bool,
    readout: ReadoutName = DEFAULT_READOUT,
    clips: int = DEFAULT_CLIPS,
    precision: Precision = "float32",
    folder: Path | None = None,
) -> Path:
    """Return where the features of a checkpoint are cached; different settings have different files.

    Args:
        checkpoint: a checkpoint, or a run's folder for its last checkpoint.
        data_hash: hash of the shards.
        untrained, readout, clips, precision: as in ``EmbeddingConfig``.
        folder: folder of the file; None for ``eval`` in the run's folder.
    """
    found = find_checkpoint(checkpoint)
    kind = READOUTS[readout].features
    words = [
        *(["untrained"] if untrained else _step_suffixes(found)),
        *([_FILE_SUFFIXES[kind]] if kind in _FILE_SUFFIXES else []),
        *clip_suffixes(clips),
        *precision_suffixes(precision),
    ]
    name = "-".join(["embeddings", data_hash[:8], f"v{PREPROCESSING_VERSION}", *words]) + FEATURES_SUFFIX
    return (folder or run_folder(found) / EVAL_FOLDER) / name


def require_writable(folder: Path, remedy: str = "choose another folder with --eval-dir") -> None:
    """Check that files can be created in a folder, which is created if necessary.

    Args:
        folder: the folder.
        remedy: what to do otherwise, for the error message.

    Raises:
        FeatureError: they cannot; the message says why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise FeatureError(f"{folder}: cannot be written to ({error.strerror or error}); {remedy}") from error


@dataclass(frozen=True, kw_only=True)
class ResultFolder:
    """Folder for results, which can be written to.

    Attributes:
        path: the folder; None if there is none, because the features are not in a file.
        notes: a note for the user if it is not the usual folder.
    """

    path: Path | None
    notes: tuple[str, ...] = ()


def result_folder(features: Features, eval_dir: Path | None = None) -> ResultFolder:
    """Choose the folder for results before they are computed, and check that it can be written to.

    This is ``eval_dir`` if given, else ``eval`` in the run's folder, else the folder of the features file.

    Raises:
        FeatureError: there is no folder that can be written to.
    """
    if eval_dir is not None:
        require_writable(eval_dir)
        return ResultFolder(path=eval_dir)
    checkpoint = features.provenance.checkpoint
    notes: tuple[str, ...] = ()
    beside = features.path.parent if features.path is not None else None
    if checkpoint is not None and Path(checkpoint).is_dir():
        usual = run_folder(Path(checkpoint)) / EVAL_FOLDER
        try:
            require_writable(usual)
            return ResultFolder(path=usual)
        except FeatureError:
            if beside is None or beside.resolve() == usual:
                raise
            notes = (f"{usual} cannot be written to: the result goes to {beside}; --eval-dir chooses another folder",)
    if beside is not None:
        require_writable(beside)
    return ResultFolder(path=beside, notes=notes)


def short_video_notes(frame_counts: Iterable[int], sampling: SamplingConfig) -> list[str]:
    """Return a note if videos are too short for the clips that the network was trained with."""
    report = SamplingReport.from_evaluation(frame_counts, sampling)
    if not report.stride_shrunk:
        return []
    return [
        f"{report.stride_shrunk} of {report.samples} videos are short: the stride of their clips was reduced, "
        f"and {report.clip_padded} also repeat the last frame"
    ]


def length_notes(features: Features) -> list[str]:
    """Return ``short_video_notes`` for learned features; for imported ones, a note that their training is unknown."""
    settings = features.provenance.settings
    if is_imported(features.provenance):
        return [f"{features.provenance.features}: imported features; the training data of their model are unknown"]
    if settings is None:
        return []
    return short_video_notes(features.videos.frame_counts, config_from_dict(settings).sampling)


def name_suffixes(provenance: Provenance) -> list[str]:
    """Return the words for the features in a result's file name; none for the last checkpoint with default clips."""
    readout = readout_suffixes(provenance.readout, standardized=provenance.standardized)
    if provenance.checkpoint is None:
        return [provenance.features.replace(" ", "-"), *readout]
    suffixes = ["untrained"] if provenance.untrained else _step_suffixes(Path(provenance.checkpoint))
    return [*suffixes, *readout, *clip_suffixes(provenance.clips), *precision_suffixes(provenance.precision)]


def precision_suffixes(precision: str) -> list[str]:
    """Return the words for the precision in a file name; none for float32."""
    return [] if precision == "float32" else [precision]


def _step_suffixes(checkpoint: Path) -> list[str]:
    """Return the name of a checkpoint that is not the last one of its run; empty if that is no longer known."""
    folder = checkpoint.resolve()
    saved = list_checkpoints(folder.parent.parent) if folder.parent.name == FOLDER_NAME else []
    return [] if not saved or saved[-1].resolve() == folder else [folder.name]


def result_provenance(features: Features, command: str, seed: int) -> Provenance:
    """Return the provenance of figures that a command computed from features."""
    return replace(features.provenance, command=command, seed=seed)


def unique(notes: Sequence[str]) -> list[str]:
    """Return the notes without repetitions, in order."""
    return list(dict.fromkeys(notes))
