"""Features files: one HDF5 file with the features of all videos of a shard set and their provenance.

No variable-length or object types, as in the shards. The features are stored contiguously, so that they can be memory
mapped and only the rows in use are read.

Shape legend: V videos, N clips of each, F features.
"""

# ruff: noqa: N815 (field names carry the shapes of their arrays)

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmd_eval.data.table import VideoTable
from cmd_eval.features.readout import NETWORK_FEATURES, READOUTS, ReadoutName
from cmd_eval.results.schema import Provenance
from cmd_extract.system.files import atomic_write
from cmd_extract.system.mapping import map_file

FORMAT_NAME = "context-motion-features"
FORMAT_VERSION = 1
MOTION_DESCRIPTOR = "motion descriptor"
COLOR_HISTOGRAM = "color histogram"
MOTION_GRIDS = "motion grids"
"""Display name of ``MOTION_DESCRIPTOR``."""

CLIPS_DATASET = "feature/clips"  # (V, N, F) float32
MEAN_DATASET = "feature/mean"  # (V, F) float32, the mean over clips
CHECKSUM_DATASET = "feature/checksum"  # (V,) uint32, CRC-32 of a video's rows in both
_SPLITS = "video/split"  # HDF5 group: one (V,) string dataset per split column
_FRAME_COUNT = "video/frame_count"  # (V,) int64
_TEXTS = {"ids": "video/id", "labels": "video/label", "groups": "video/group", "fingerprints": "video/fingerprint"}
_ROWS_PER_BLOCK = 8192


def display_name(features: str) -> str:
    """Return the name shown to users for a kind of features."""
    return MOTION_GRIDS if features == MOTION_DESCRIPTOR else features


def is_imported(provenance: Provenance) -> bool:
    """Return whether features were computed by another program (``cmd-eval import-features``)."""
    return provenance.features not in (*NETWORK_FEATURES, MOTION_DESCRIPTOR, COLOR_HISTOGRAM)


class FeatureError(ValueError):
    """A features file cannot be used; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of whole videos with their provenance.

    Attributes:
        videos: the videos, in the order of the rows.
        mean_VF: (V, F) float32, the mean over clips; memory mapped if read from a file.
        clips_VNF: (V, N, F) float32, likewise; None if only the mean is known.
        provenance: origin of the features; its ``command`` is the one that computed them.
        path: their file, if any.
    """

    videos: VideoTable
    mean_VF: NDArray[np.float32]
    provenance: Provenance
    clips_VNF: NDArray[np.float32] | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.mean_VF.ndim != 2 or len(self.mean_VF) != len(self.videos):
            raise ValueError(f"mean_VF: shape {self.mean_VF.shape} for {len(self.videos)} videos")
        if self.clips_VNF is not None and len(self.clips_VNF) != len(self.videos):
            raise ValueError(f"clips_VNF: shape {self.clips_VNF.shape} for {len(self.videos)} videos")

    @property
    def table_VF(self) -> NDArray[np.float32]:  # noqa: N802 - names the shape, like the fields
        """One feature per video according to the readout: the mean over clips, or all clips concatenated."""
        if self.provenance.readout not in READOUTS:
            raise FeatureError(f"{self.path}: readout {self.provenance.readout!r} is unknown; recompute the features")
        if not READOUTS[cast(ReadoutName, self.provenance.readout)].ordered:
            return self.mean_VF
        if self.clips_VNF is None:
            raise FeatureError(f"readout: {self.provenance.readout!r} needs the features of single clips")
        return self.clips_VNF.reshape(len(self.clips_VNF), -1)

    def rows(self, rows: NDArray[np.int64]) -> FeatureRows:
        """Return the features of some videos, read block by block."""
        return FeatureRows(self.table_VF, rows, ids=self.videos.ids)

    def comparable(self, query: NDArray[np.int64], gallery: NDArray[np.int64]) -> tuple[FeatureRows, FeatureRows]:
        """Return query and gallery features, standardized with the gallery's statistics on request."""
        query_rows, gallery_rows = self.rows(query), self.rows(gallery)
        if self.provenance.standardized:
            mean_F, scale_F = column_statistics(gallery_rows)
            query_rows = replace(query_rows, mean_F=mean_F, scale_F=scale_F)
            gallery_rows = replace(gallery_rows, mean_F=mean_F, scale_F=scale_F)
        return query_rows, gallery_rows


@dataclass(frozen=True)
class FeatureRows:
    """Some rows of a features table that may be larger than memory; slices are read on access.

    Attributes:
        table_VF: all rows.
        rows: row numbers to select, in this order.
        mean_F, scale_F: every row is standardized with these; None for no scaling.
        ids: video ids of all rows, for error messages.
    """

    table_VF: NDArray[np.float32]
    rows: NDArray[np.int64]
    mean_F: NDArray[np.float64] | None = None
    scale_F: NDArray[np.float64] | None = None
    ids: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and features."""
        return len(self.rows), self.table_VF.shape[1]

    def __getitem__(self, block: slice) -> Tensor:
        return torch.from_numpy(self.read(block))

    def read(self, block: slice = slice(None)) -> NDArray[np.float32]:
        """Return a copy of some rows, (rows, F) float32.

        Raises:
            FeatureError: a row contains values that are not finite.
        """
        values = self.table_VF[self.rows[block]]
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            row = int(self.rows[block][~finite][0])
            name = f"video {self.ids[row]}" if self.ids else f"row {row}"
            raise FeatureError(
                f"the features of {name} are not finite; check the checkpoint and recompute them with --fresh"
            )
        if self.mean_F is not None and self.scale_F is not None:
            values = ((values - self.mean_F) / self.scale_F).astype(np.float32)
        return np.asarray(values, np.float32)


def mean_over_clips(feature_NF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean feature (F,) of the clips of a video, summed in double precision."""
    mean_F: NDArray[np.float32] = feature_NF.mean(axis=0, dtype=np.float64).astype("<f4")
    return mean_F


def column_statistics(rows: FeatureRows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each feature, (F,) float64; a standard deviation of 0 is replaced by 1."""
    blocks = [slice(start, start + _ROWS_PER_BLOCK) for start in range(0, len(rows), _ROWS_PER_BLOCK)]
    total = sum(rows.read(block).astype(np.float64).sum(axis=0) for block in blocks)
    mean = np.asarray(total / len(rows))
    squares = sum(((rows.read(block) - mean) ** 2).sum(axis=0) for block in blocks)
    deviation = np.sqrt(np.asarray(squares) / len(rows))
    return mean, np.where(deviation > 0, deviation, 1.0)


def with_readout(features: Features, readout: str | None) -> Features:
    """Return features that are compared with another readout of the same clip features.

    Args:
        features: features from a file.
        readout: name of the readout; None keeps the recorded one.

    Raises:
        FeatureError: the file contains other clip features than the readout needs.
    """
    if readout is None or readout == features.provenance.readout:
        return features
    kind = features.provenance.features
    possible = [name for name, chosen in READOUTS.items() if chosen.features == kind]
    remedy = f"embed the videos with --readout {readout}"
    if is_imported(features.provenance):
        possible = ["mean", "ordered"] if features.provenance.clips else ["mean"]
        remedy = "import features of the kind to compare"
    if readout not in possible:
        raise FeatureError(
            f"{features.path}: contains {kind!r} features, which allow the readouts {', '.join(possible) or 'none'}, "
            f"not {readout!r}; {remedy}"
        )
    return replace(features, provenance=replace(features.provenance, readout=readout))


def identity(provenance: Provenance) -> dict[str, Any]:
    """Return what determines features: kind, readout, data, weights, clips, precision and preprocessing."""
    names = (
        "features",
        "readout",
        "data_hash",
        "checkpoint_sha256",
        "untrained",
        "clips",
        "precision",
        "preprocessing",
    )
    return {name: getattr(provenance, name) for name in names}


def check_identity(features: Features, expected: Provenance) -> None:
    """Check that features were computed from the expected data and weights with the expected number of clips.

    Raises:
        FeatureError: they were not; the message names the differences.
    """
    found, need = identity(features.provenance), identity(expected)
    differences = [
        f"{name} {_short(found[name])}, expected {_short(need[name])}" for name in need if found[name] != need[name]
    ]
    if differences:
        raise FeatureError(
            f"{features.path}: contains other features ({'; '.join(differences)}); "
            "recompute them with --fresh, delete the file, or choose another file"
        )


def _short(value: object) -> str:
    text = str(value)
    return text[:8] if len(text) == 64 else text


def write_features(path: Path, features: Features) -> None:
    """Write a features file atomically.

    Raises:
        OSError: the file cannot be written.
    """
    clips_VNF = features.mean_VF[:, None] if features.clips_VNF is None else features.clips_VNF
    with atomic_write(path) as temporary:
        create_features_file(temporary, features.videos, features.provenance, *clips_VNF.shape[1:])
        with h5py.File(temporary, "r+", locking=False) as file:
            file[CLIPS_DATASET][:] = clips_VNF
            file[MEAN_DATASET][:] = features.mean_VF


def create_features_file(path: Path, videos: VideoTable, provenance: Provenance, clips: int, width: int) -> None:
    """Write a features file in which the space for the features is allocated but not filled.

    Args:
        path: the file.
        videos: V videos.
        provenance: recorded.
        clips: N.
        width: F.
    """
    with h5py.File(path, "w", locking=False) as file:
        file.attrs["format"] = FORMAT_NAME
        file.attrs["version"] = FORMAT_VERSION
        file.attrs["provenance"] = json.dumps(asdict(provenance), sort_keys=True)
        for name, dataset in _TEXTS.items():
            _write_texts(file, dataset, getattr(videos, name))
        file.create_group(_SPLITS)
        for column, parts in videos.splits.items():
            _write_texts(file, f"{_SPLITS}/{column}", parts)
        file.create_dataset(_FRAME_COUNT, data=np.array(videos.frame_counts, np.int64), track_times=False)
        _allocate(file, CLIPS_DATASET, (len(videos), clips, width), "<f4")
        _allocate(file, MEAN_DATASET, (len(videos), width), "<f4")
        _allocate(file, CHECKSUM_DATASET, (len(videos),), "<u4")


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    file.create_dataset(name, shape=shape, dtype=dtype, dcpl=properties, track_times=False)


def _write_texts(file: h5py.File, name: str, texts: Iterable[str]) -> None:
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    length = max([1, *map(len, encoded)])
    file.create_dataset(name, data=np.array(encoded, h5py.string_dtype("utf-8", length)), track_times=False)


def read_features(path: Path) -> Features:
    """Open a features file; the features themselves are memory mapped.

    Raises:
        FeatureError: the file is not a features file, or has another format version.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            _check_format(path, file)
            splits = {column: _read_texts(file, f"{_SPLITS}/{column}") for column in file[_SPLITS]}
            videos = VideoTable(
                **{name: _read_texts(file, dataset) for name, dataset in _TEXTS.items()},
                splits=splits,
                frame_counts=tuple(file[_FRAME_COUNT][:].tolist()),
            )
            provenance = Provenance(**json.loads(file.attrs["provenance"]))
            return Features(
                videos=videos,
                mean_VF=_map(path, file[MEAN_DATASET]),
                clips_VNF=_map(path, file[CLIPS_DATASET]),
                provenance=provenance,
                path=path,
            )
    except (OSError, KeyError, TypeError) as error:
        raise FeatureError(
            f"{path}: not a readable features file ({error}); create one with `cmd-eval embed CHECKPOINT SHARDS OUT.h5`"
        ) from error


def _check_format(path: Path, file: h5py.File) -> None:
    name, version = file.attrs.get("format"), file.attrs.get("version")
    if name != FORMAT_NAME:
        raise FeatureError(
            f"{path}: not a features file (format {name!r}); create one with `cmd-eval embed CHECKPOINT SHARDS OUT.h5`"
        )
    if version != FORMAT_VERSION:
        raise FeatureError(
            f"{path}: features format version {version} is not supported (expected {FORMAT_VERSION}); recompute them"
        )


def _read_texts(file: h5py.File, name: str) -> tuple[str, ...]:
    return tuple(bytes(value).decode("utf-8", "surrogateescape") for value in file[name][:])


def _map(path: Path, dataset: h5py.Dataset) -> NDArray[np.float32]:
    return map_file(path, dataset.dtype, dataset.id.get_offset(), dataset.shape)
