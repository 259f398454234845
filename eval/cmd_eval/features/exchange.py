"""Exchange features with other programs: import those of any model, export those of a features file.

An imported file is an ordinary features file: retrieval, probes and search use it like one of ``cmd-eval embed``.

Shape legend: V videos, N clips of each, F features.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cmd_eval.data.table import VideoTable
from cmd_eval.features.readout import NETWORK_FEATURES
from cmd_eval.features.store import (
    CLIPS_DATASET,
    COLOR_HISTOGRAM,
    MEAN_DATASET,
    MOTION_DESCRIPTOR,
    FeatureError,
    Features,
    create_features_file,
    read_features,
)
from cmd_eval.results.schema import Provenance
from cmd_extract.shard.folders import join_paths
from cmd_extract.shard.reader import ShardSet
from cmd_extract.system.files import atomic_write, remove_leftovers

_TEXT_COLUMNS = ("label", "group", "fingerprint")
_FRAME_COUNT = "frame_count"
_SPLIT_COLUMN = re.compile(r"split[A-Za-z0-9_-]*")
_RESERVED_NAMES = (*NETWORK_FEATURES, MOTION_DESCRIPTOR, COLOR_HISTOGRAM)
_VALUES_PER_BLOCK = 1 << 22  # 16 MiB of float32
_MAX_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class ImportedFeatures:
    """Features file of another model.

    Attributes:
        features: its content.
        notes: notes for the user.
    """

    features: Features
    notes: tuple[str, ...]


def import_features(
    array: Path, table: Path, out: Path, *, name: str | None, shards: ShardSet | None, command: str
) -> ImportedFeatures:
    """Write a features file from an array and a table of videos.

    Args:
        array: ``.npy`` file with (V, F) features, or (V, N, F) for N clips of each video in temporal order.
        table: CSV file with a header and one row per video, in the order of the array. Required is the column ``id``;
            ``label``, ``group``, ``fingerprint`` (SHA-256 of the video file), ``frame_count`` and split columns (names
            that start with ``split``) are optional.
        out: features file to create.
        name: name of the features in tables; None for the name of ``array`` without suffix.
        shards: the shards of these videos, from which everything but the ids is taken; None to take it from ``table``.
        command: command line, recorded as provenance.

    Raises:
        FeatureError: the files cannot be read, contradict each other or the shards, or contain values that are not
            finite; or ``out`` exists.
        OSError: a file cannot be read or written.
    """
    _check_absent(out)
    kind = _checked_name(array.stem if name is None else name)
    feature_VNF, clips = _open_array(array)
    header, rows = _read_table(table)
    if len(rows) != len(feature_VNF):
        raise FeatureError(
            f"{table}: {len(rows)} videos, but {array} has {len(feature_VNF)} rows; give one row of features per video"
        )
    notes = []
    if shards is None:
        videos = _table_videos(table, rows)
        ignored = [column for column in header if not _is_known(column)]
        notes += [f"columns that are not used: {', '.join(ignored)}"] if ignored else []
        notes += _fingerprint_notes(header)
    else:
        videos = _shard_videos(table, rows, shards)
    provenance = Provenance(
        command=command,
        shards="" if shards is None else join_paths(shards.folders),
        data_hash=_data_hash(videos) if shards is None else shards.data_hash,
        features=kind,
        clips=clips,
    )
    remove_leftovers(out.parent)
    with atomic_write(out) as temporary:
        create_features_file(temporary, videos, provenance, *feature_VNF.shape[1:])
        with h5py.File(temporary, "r+", locking=False) as file:
            for block, values in _finite_blocks(feature_VNF, array, videos):
                file[CLIPS_DATASET][block] = values
                file[MEAN_DATASET][block] = values.mean(axis=1, dtype=np.float64)
    return ImportedFeatures(features=read_features(out), notes=tuple(notes))


def _checked_name(name: str) -> str:
    if not name.strip() or not name.isprintable() or name in _RESERVED_NAMES:
        raise FeatureError(
            f"name: {name!r} is not a name for imported features; use the name of their model, other than "
            f"{', '.join(map(repr, _RESERVED_NAMES))}"
        )
    return name


def _check_absent(path: Path) -> None:
    if path.exists():
        raise FeatureError(f"{path}: exists already; delete it or choose another file")


def _open_array(path: Path) -> tuple[NDArray[Any], int | None]:
    """Return the (V, N, F) features, memory mapped, and the number of clips; None if the file has no clips.

    Raises:
        FeatureError: the file is not an array of numbers with such a shape.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FeatureError(f"{path}: not a readable .npy file ({error}); write one with numpy.save") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise FeatureError(f"{path}: an archive of several arrays; write one array with numpy.save")
    if array.dtype.kind not in "fiu":
        raise FeatureError(f"{path}: contains values of type {array.dtype}; expected floating-point numbers")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise FeatureError(
            f"{path}: shape {array.shape}; expected (videos, features), or (videos, clips, features) in temporal order"
        )
    return (array, array.shape[1]) if array.ndim == 3 else (array[:, None], None)


def _finite_blocks(
    feature_VNF: NDArray[Any], path: Path, videos: VideoTable
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield the features as float32, some videos at a time.

    Raises:
        FeatureError: a value is not finite, or too large for float32.
    """
    rows = max(1, _VALUES_PER_BLOCK // feature_VNF[0].size)
    for start in range(0, len(feature_VNF), rows):
        block = slice(start, start + rows)
        with np.errstate(over="ignore"):
            values = np.asarray(feature_VNF[block], np.float32)
        finite = np.isfinite(values).all(axis=(1, 2))
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise FeatureError(
                f"{path}: row {row} (video {videos.ids[row]}) contains values that are not finite in float32; "
                "compute the features of this video again, or leave it out of both files"
            )
        yield block, values


def _read_table(path: Path) -> tuple[Sequence[str], Sequence[Mapping[str, str]]]:
    """Return header and rows of a CSV file with unique ids.

    Raises:
        FeatureError: there is no column of ids, a row has another number of cells than the header, or an id is missing
            or occurs twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            lines = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FeatureError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if "id" not in header or len(set(header)) < len(header):
        raise FeatureError(f"{path}: columns {', '.join(header) or 'none'}; a column 'id' is required, and none twice")
    rows: list[Mapping[str, str]] = []
    seen: dict[str, int] = {}
    for number, cells in lines:
        if len(cells) != len(header):
            raise FeatureError(f"{path}, line {number}: {len(cells)} cells under {len(header)} columns")
        row = dict(zip(header, cells, strict=True))
        if not row["id"]:
            raise FeatureError(f"{path}, line {number}: the id is missing")
        if row["id"] in seen:
            raise FeatureError(f"{path}, line {number}: id {row['id']!r} is also in line {seen[row['id']]}")
        seen[row["id"]] = number
        rows.append(row)
    return header, rows


def _is_known(column: str) -> bool:
    return column in ("id", *_TEXT_COLUMNS, _FRAME_COUNT) or bool(_SPLIT_COLUMN.fullmatch(column))


def _table_videos(path: Path, rows: Sequence[Mapping[str, str]]) -> VideoTable:
    columns = [column for column in (rows[0] if rows else ()) if _SPLIT_COLUMN.fullmatch(column)]
    return VideoTable(
        ids=tuple(row["id"] for row in rows),
        labels=tuple(row.get("label", "") for row in rows),
        groups=tuple(row.get("group", "") for row in rows),
        # Without the hash of its file, a video is identical only to itself.
        fingerprints=tuple(row.get("fingerprint") or f"id:{row['id']}" for row in rows),
        splits={column: tuple(row[column] for row in rows) for column in columns},
        frame_counts=tuple(_frame_count(path, row) for row in rows),
    )


def _frame_count(path: Path, row: Mapping[str, str]) -> int:
    text = row.get(_FRAME_COUNT) or "0"
    if not (text.isascii() and text.isdigit()):
        raise FeatureError(f"{path}: video {row['id']}: frame_count {text!r} is not a number of frames")
    return int(text)


def _fingerprint_notes(header: Sequence[str]) -> list[str]:
    if "fingerprint" in header:
        return []
    return [
        "no column 'fingerprint': copies of a file under another id will not be found; give the shards with --shards, "
        "or the SHA-256 of each video file"
    ]


def _shard_videos(path: Path, rows: Sequence[Mapping[str, str]], shards: ShardSet) -> VideoTable:
    """Return the videos of shards in the order of a table.

    Raises:
        FeatureError: the table does not contain exactly the videos of the shards.
    """
    entries = {video_id: number for number, video_id in enumerate(shards.videos.texts("video_id"))}
    given = [row["id"] for row in rows]
    for ids, problem in (
        ([video_id for video_id in given if video_id not in entries], f"are not in {join_paths(shards.folders)}"),
        (sorted(entries.keys() - set(given)), f"of {join_paths(shards.folders)} are missing"),
    ):
        if ids:
            listed = ", ".join(ids[:_MAX_LISTED]) + (", ..." if len(ids) > _MAX_LISTED else "")
            raise FeatureError(f"{path}: {len(ids)} videos {problem}: {listed}; list each video of the shards once")
    return VideoTable.of(shards.videos.select([entries[video_id] for video_id in given]))


def _data_hash(videos: VideoTable) -> str:
    """Return a hash in place of that of the shards: equal for the same files under the same ids, in any order."""
    digest = hashlib.sha256()
    for pair in sorted(zip(videos.ids, videos.fingerprints, strict=True)):
        digest.update("\0".join((*pair, "")).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def export_features(features: Features, out: Path, *, clips: bool = False) -> list[Path]:
    """Write features for other programs.

    Args:
        features: the features, as compared by their readout.
        out: ``NAME.npy``, which writes (V, F) float32 and the videos to ``NAME.csv``; or ``NAME.parquet``, which writes
            one table with a column ``feature``.
        clips: write the features of the clips, (V, N, F), instead; ``.npy`` only.

    Returns:
        The files.

    Raises:
        FeatureError: the suffix is another one, a file exists, or the package pyarrow is missing.
        OSError: a file cannot be written.
    """
    if out.suffix not in (".npy", ".parquet") or (clips and out.suffix != ".npy"):
        raise FeatureError(f"{out}: the file name must end in .npy{'' if clips else ' or .parquet'}")
    paths = [out, out.with_suffix(".csv")] if out.suffix == ".npy" else [out]
    for path in paths:
        _check_absent(path)
    if out.suffix == ".parquet":
        _write_parquet(out, features)
        return paths
    values = features.clips_VNF if clips and features.clips_VNF is not None else features.table_VF
    remove_leftovers(out.parent)
    with atomic_write(paths[1]) as temporary:
        _write_table(temporary, features.videos)
    with atomic_write(out) as temporary, temporary.open("wb") as stream:
        # The values may be memory mapped from a file larger than memory.
        np.lib.format.write_array(stream, values, allow_pickle=False)
    return paths


def _columns(videos: VideoTable) -> dict[str, Sequence[Any]]:
    named = {"id": videos.ids, "label": videos.labels, "group": videos.groups, "fingerprint": videos.fingerprints}
    return {**named, _FRAME_COUNT: videos.frame_counts, **videos.splits}


def _write_table(path: Path, videos: VideoTable) -> None:
    columns = _columns(videos)
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_parquet(path: Path, features: Features) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise FeatureError(
            f"{path}: Parquet needs the package pyarrow (pip install '.[parquet]'); or export to .npy"
        ) from error
    values = np.ascontiguousarray(features.table_VF)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    table = pa.table({**{name: list(cells) for name, cells in _columns(features.videos).items()}, "feature": vectors})
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary)
