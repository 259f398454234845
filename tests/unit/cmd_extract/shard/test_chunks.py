from __future__ import annotations

from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from cmd_extract.shard.chunks import ChunkedRows
from cmd_extract.shard.locations import chunk_table

ROWS, CHUNK = 37, 4
BLOSC = hdf5plugin.Blosc(cname="lz4hc", clevel=1, shuffle=hdf5plugin.Blosc.SHUFFLE)


def write(path: Path, values: np.ndarray, chunk: int = CHUNK) -> Path:
    with h5py.File(path, "w") as file:
        shape = (None, *values.shape[1:])
        file.create_dataset("rows", data=values, chunks=(chunk, *values.shape[1:]), maxshape=shape, **BLOSC)
    return path


def chunked_rows(path: Path) -> ChunkedRows:
    data = path.read_bytes()
    with h5py.File(path, "r") as file:
        dataset, table = file["rows"], chunk_table(file["rows"])
        return ChunkedRows(
            dataset.name,
            dataset.chunks,
            dataset.dtype,
            lambda first, stop: table[first:stop],
            lambda start, count: data[start : start + count],
        )


def smooth() -> np.ndarray:
    return np.random.default_rng(0).integers(-3, 3, (ROWS, 2, 6, 8)).astype(np.int16)


@pytest.mark.parametrize("chunk", [1, 4, 8, 64])
def test_any_range_of_rows_equals_what_hdf5_reads(chunk: int, tmp_path: Path) -> None:
    values = smooth()
    rows = chunked_rows(write(tmp_path / "a.h5", values, chunk))
    for start in range(ROWS):
        for count in (0, 1, 3, 4, 8, ROWS - start):
            out = np.full((min(count, ROWS - start), 2, 6, 8), 99, np.int16)
            rows.read_into(start, out)
            np.testing.assert_array_equal(out, values[start : start + count])


def test_uncompressed_chunks(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-(2**15), 2**15, (ROWS, 2, 6, 8)).astype(np.int16)
    path = write(tmp_path / "a.h5", values)
    with h5py.File(path, "r+") as file:
        # HDF5 stores a chunk like this if compression does not make it smaller: raw bytes and a filter mask.
        file["rows"].id.write_direct_chunk((8, 0, 0, 0), values[8:12].tobytes(), filter_mask=1)
    out = np.empty((12, 2, 6, 8), np.int16)
    chunked_rows(path).read_into(5, out)
    np.testing.assert_array_equal(out, values[5:17])


def test_masks_are_read_as_bool(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2, (ROWS, 6, 8)).astype(np.uint8)
    out = np.empty((9, 6, 8), np.bool_)
    chunked_rows(write(tmp_path / "a.h5", values)).read_into(2, out)
    np.testing.assert_array_equal(out, values[2:11] == 1)


@pytest.mark.parametrize("damage", ["random", "size", "compressed size", "truncated"])
def test_a_damaged_chunk_raises_an_error_and_affects_no_other(damage: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", smooth())
    with h5py.File(path, "r") as file:
        place = file["rows"].id.get_chunk_info_by_coord((8, 0, 0, 0))
    raw = bytearray(path.read_bytes())
    start, stop = place.byte_offset, place.byte_offset + place.size
    if damage == "random":
        raw[start:stop] = np.random.default_rng(0).bytes(place.size)
    elif damage == "compressed size":  # larger than the chunk
        raw[start + 12 : start + 16] = (2**30).to_bytes(4, "little")
    elif damage == "size":  # larger than the chunk
        raw[start + 4 : start + 8] = (2**30).to_bytes(4, "little")
    else:
        raw[start + 16 : stop] = bytes(place.size - 16)
    path.write_bytes(raw)
    rows = chunked_rows(path)
    for first in (8, 9):  # directly, and through the buffer
        with pytest.raises(OSError, match="rows: chunk 2 cannot be decompressed"):
            rows.read_into(first, np.empty((4, 2, 6, 8), np.int16))
    rows.read_into(0, np.empty((8, 2, 6, 8), np.int16))
    rows.read_into(12, np.empty((8, 2, 6, 8), np.int16))


def test_arrays_of_another_row_size_are_rejected(tmp_path: Path) -> None:
    rows = chunked_rows(write(tmp_path / "a.h5", smooth()))
    for out in (np.empty((4, 2, 6, 7), np.int16), np.empty((4, 2, 6, 16), np.int16)[..., ::2]):
        with pytest.raises(ValueError, match="must be a contiguous array of whole rows"):
            rows.read_into(0, out)
    with pytest.raises(OSError, match="chunk 10"):
        rows.read_into(36, np.empty((8, 2, 6, 8), np.int16))
