"""Files of features: one HDF5 file holds those of all videos of a shard set, with what they were made of and by.

No variable-length or object types, as in the shards; the features lie contiguously, so that they are mapped and only
the rows in use are read.

Shape legend: V videos, N clips of each, F features.
"""

# ruff: noqa: N815 (carriers name the shapes of their arrays)

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmd_eval.data.table import VideoTable
from cmd_eval.results.schema import Provenance
from cmd_eval.results.whole_file import replace_when_whole

FORMAT_NAME = "context-motion-features"
FORMAT_VERSION = 1
BACKBONE_FEATURES = "backbone, pooled"
MOTION_DESCRIPTOR = "motion descriptor"
COLOR_HISTOGRAM = "colour histogram"
MOTION_GRIDS = "motion grids"
"""What people are told where files say ``MOTION_DESCRIPTOR``: files keep the word that older ones have."""

_CLIPS = "feature/clips"  # (V, N, F) float32
_MEAN = "feature/mean"  # (V, F) float32, the mean over clips
_SPLITS = "video/split"  # HDF5 group: one (V,) string dataset a split column
_FRAME_COUNT = "video/frame_count"  # (V,) int64
_TEXTS = {"ids": "video/id", "labels": "video/label", "groups": "video/group", "fingerprints": "video/fingerprint"}
_ROWS_AT_ONCE = 8192


def spoken_name(features: str) -> str:
    """What features are called before people, by their name in files."""
    return MOTION_GRIDS if features == MOTION_DESCRIPTOR else features


class FeatureError(ValueError):
    """A features file that cannot be used as it is; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of whole videos and where they come from.

    Attributes:
        videos: the videos, in the order of the rows.
        mean_VF: (V, F) float32, the mean over clips; of a file it is a map, of which only what is used is read.
        clips_VNF: (V, N, F) float32 likewise; None where only the mean is known.
        provenance: what they were made of and by; its ``command`` is the one that made them.
        path: their file, if there is one.
    """

    videos: VideoTable
    mean_VF: NDArray[np.float32]
    provenance: Provenance
    clips_VNF: NDArray[np.float32] | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.mean_VF.ndim != 2 or len(self.mean_VF) != len(self.videos):
            raise ValueError(f"mean_VF: shape {self.mean_VF.shape} for {len(self.videos)} videos")

    @property
    def unlike_units(self) -> bool:
        """Whether columns have units of their own, so that they must be standardised before they are compared."""
        return self.provenance.features == MOTION_DESCRIPTOR

    def rows(self, rows: NDArray[np.int64]) -> FeatureRows:
        """The mean features of some videos, read block by block."""
        return FeatureRows(self.mean_VF, rows, ids=self.videos.ids)

    def comparable(self, query: NDArray[np.int64], gallery: NDArray[np.int64]) -> tuple[FeatureRows, FeatureRows]:
        """Queries and gallery as they are compared: standardised by the gallery if their units are unlike."""
        asked, found = self.rows(query), self.rows(gallery)
        if self.unlike_units:
            mean_F, scale_F = column_statistics(found)
            asked = replace(asked, mean_F=mean_F, scale_F=scale_F)
            found = replace(found, mean_F=mean_F, scale_F=scale_F)
        return asked, found


@dataclass(frozen=True)
class FeatureRows:
    """Some rows of a table of features, which may be larger than memory; a slice of it is read when it is asked for.

    Attributes:
        table_VF: all rows.
        rows: which of them, in this order.
        mean_F, scale_F: taken out of every row that is read; None for the rows as they are.
        ids: names of the videos of all rows, for messages.
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
        """Rows and features."""
        return len(self.rows), self.table_VF.shape[1]

    def __getitem__(self, block: slice) -> Tensor:
        return torch.from_numpy(self.read(block))

    def read(self, block: slice = slice(None)) -> NDArray[np.float32]:
        """A copy of some rows, (rows, F) float32.

        Raises:
            FeatureError: one holds values that are not finite, of which no figure could be made.
        """
        values = self.table_VF[self.rows[block]]
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            row = int(self.rows[block][~finite][0])
            name = f"video {self.ids[row]}" if self.ids else f"row {row}"
            raise FeatureError(f"the features of {name} are not finite; look after the checkpoint and embed it again")
        if self.mean_F is not None and self.scale_F is not None:
            values = ((values - self.mean_F) / self.scale_F).astype(np.float32)
        return np.asarray(values, np.float32)


def column_statistics(rows: FeatureRows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each feature, (F,) float64; 1 in place of a deviation of 0."""
    blocks = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(rows), _ROWS_AT_ONCE)]
    total = sum(rows.read(block).astype(np.float64).sum(axis=0) for block in blocks)
    mean = np.asarray(total / len(rows))
    squares = sum(((rows.read(block) - mean) ** 2).sum(axis=0) for block in blocks)
    deviation = np.sqrt(np.asarray(squares) / len(rows))
    return mean, np.where(deviation > 0, deviation, 1.0)


def identity(provenance: Provenance) -> dict[str, Any]:
    """What must be equal for features to be the same: their kind, data, weights and clips."""
    names = ("features", "data_hash", "checkpoint_sha256", "untrained", "clips")
    return {name: getattr(provenance, name) for name in names}


def write_features(
    path: Path,
    videos: VideoTable,
    provenance: Provenance,
    blocks: Iterable[NDArray[np.float32]],
    clips: int,
    width: int,
    *,
    temporary: Path | None = None,
) -> None:
    """Writes a features file under a temporary name and renames it when it is complete.

    Args:
        path: the file.
        videos: V videos.
        provenance: recorded.
        blocks: the features of all videos in order, (any, N, F) each, V rows in all.
        clips: N.
        width: F.
        temporary: the temporary name, where the caller sees to it that nobody else uses it; a file that a killed run
            has left there is overwritten. None for one of this process alone.

    Raises:
        ValueError: the blocks have not V rows in all.
        OSError: the file cannot be written.
    """
    with replace_when_whole(path, temporary) as target, h5py.File(target, "w", locking=False) as file:
        file.attrs["format"] = FORMAT_NAME
        file.attrs["version"] = FORMAT_VERSION
        file.attrs["provenance"] = json.dumps(asdict(provenance), sort_keys=True)
        for name, dataset in _TEXTS.items():
            _put_texts(file, dataset, getattr(videos, name))
        file.create_group(_SPLITS)
        for column, parts in videos.splits.items():
            _put_texts(file, f"{_SPLITS}/{column}", parts)
        _create(file, _FRAME_COUNT, (len(videos),), np.int64)[:] = videos.frame_counts
        stored = _create(file, _CLIPS, (len(videos), clips, width), np.float32)
        mean = _create(file, _MEAN, (len(videos), width), np.float32)
        start = 0
        for block in blocks:
            stored[start : start + len(block)] = block
            mean[start : start + len(block)] = block.mean(axis=1, dtype=np.float64).astype(np.float32)
            start += len(block)
        if start != len(videos):
            raise ValueError(f"blocks: {start} rows for {len(videos)} videos")


def _create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: type) -> h5py.Dataset:
    return file.create_dataset(name, shape=shape, dtype=dtype, track_times=False)


def _put_texts(file: h5py.File, name: str, texts: Iterable[str]) -> None:
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    length = max([1, *map(len, encoded)])
    file.create_dataset(name, data=np.array(encoded, h5py.string_dtype("utf-8", length)), track_times=False)


def read_features(path: Path) -> Features:
    """Opens a features file; the features themselves are mapped.

    Raises:
        FeatureError: it is no such file, or one of another version.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            _check_format(path, file)
            splits = {column: _texts(file, f"{_SPLITS}/{column}") for column in file[_SPLITS]}
            videos = VideoTable(
                **{name: _texts(file, dataset) for name, dataset in _TEXTS.items()},
                splits=splits,
                frame_counts=tuple(file[_FRAME_COUNT][:].tolist()),
            )
            provenance = _provenance(json.loads(file.attrs["provenance"]))
            return Features(
                videos=videos,
                mean_VF=_map(path, file[_MEAN]),
                clips_VNF=_map(path, file[_CLIPS]),
                provenance=provenance,
                path=path,
            )
    except (OSError, KeyError) as error:
        raise FeatureError(
            f"{path}: not a readable features file ({error}); make one with `cmd-eval embed CHECKPOINT SHARDS OUT.h5`"
        ) from error


def _check_format(path: Path, file: h5py.File) -> None:
    name, version = file.attrs.get("format"), file.attrs.get("version")
    if name != FORMAT_NAME:
        raise FeatureError(
            f"{path}: not a features file (format {name!r}); make one with `cmd-eval embed CHECKPOINT SHARDS OUT.h5`"
        )
    if version != FORMAT_VERSION:
        raise FeatureError(f"{path}: features format version {version}, this release reads {FORMAT_VERSION}")


def _provenance(stored: Mapping[str, Any]) -> Provenance:
    known = {field.name for field in fields(Provenance)}
    return Provenance(**{name: value for name, value in stored.items() if name in known})


def _texts(file: h5py.File, name: str) -> tuple[str, ...]:
    return tuple(bytes(value).decode("utf-8", "surrogateescape") for value in file[name][:])


def _map(path: Path, dataset: h5py.Dataset) -> NDArray[np.float32]:
    return np.asarray(np.memmap(path, dataset.dtype, "r", offset=dataset.id.get_offset(), shape=dataset.shape))
