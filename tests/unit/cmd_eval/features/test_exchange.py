from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmd_eval.data.splits import leave_one_out_split, part_split
from cmd_eval.features.exchange import export_features, import_features
from cmd_eval.features.source import FeatureSource, length_notes, open_features
from cmd_eval.features.store import FeatureError, Features, is_imported, read_features, with_readout
from tests.unit.cmd_eval.features.test_features import features_of

HEADER = ["id", "path", "label", "group", "split1", "frame_count"]
ROWS = [
    ["a", "a.mp4", "left", "g1", "train", "10"],
    ["b", "b.mp4", "up", "g2", "train", "20"],
    ["c", "c.mp4", "left", "g3", "test", "30"],
]
VALUES = np.random.default_rng(0).standard_normal((3, 4, 5))


def write_table(path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def imported(
    folder: Path, values: np.ndarray = VALUES, rows: Sequence[Sequence[str]] = ROWS, **options: object
) -> Features:
    np.save(folder / "model.npy", values)
    table = write_table(folder / "videos.csv", rows)
    given = {"name": None, "shards": None, "command": "cmd-eval import-features"} | options
    return import_features(folder / "model.npy", table, folder / "out.h5", **given).features  # type: ignore[arg-type] # options


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_imported_features_have_the_values_and_the_videos_of_their_files(tmp_path: Path, dtype: type) -> None:
    values = (10 * VALUES).astype(dtype)
    features = imported(tmp_path, values)
    assert features.clips_VNF is not None
    np.testing.assert_array_equal(features.clips_VNF, values.astype(np.float32))
    np.testing.assert_allclose(features.mean_VF, values.astype(np.float64).mean(1), rtol=1e-6)
    videos = features.videos
    assert (videos.ids, videos.labels, videos.groups) == (("a", "b", "c"), ("left", "up", "left"), ("g1", "g2", "g3"))
    assert (videos.splits, videos.frame_counts) == ({"split1": ("train", "train", "test")}, (10, 20, 30))
    source = features.provenance
    assert (source.features, source.clips, source.checkpoint) == ("model", 4, None)
    assert is_imported(source)
    assert length_notes(features) == ["model: imported features; the training data of their model are unknown"]
    # Videos without the hash of their file are not copies of one another.
    assert len(part_split(videos, "split1", "test", "train", "label").query) == 1
    assert len(leave_one_out_split(videos, "label").query) == 3


def test_the_data_hash_does_not_depend_on_the_order_of_the_videos(tmp_path: Path) -> None:
    hashes = []
    for number, rows in enumerate((ROWS, ROWS[::-1], [["other", *ROWS[0][1:]], *ROWS[1:]])):
        (tmp_path / str(number)).mkdir()
        hashes.append(imported(tmp_path / str(number), rows=rows).provenance.data_hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_options_that_do_not_fit_a_features_file_are_rejected(tmp_path: Path) -> None:
    imported(tmp_path)
    path = tmp_path / "out.h5"

    def opened(**options: Any) -> Features:
        return open_features(FeatureSource(source=path, **options), "x", lambda done, total: None)

    assert opened(precision="float32").provenance.precision == opened().provenance.precision == "float32"
    with pytest.raises(FeatureError, match="computed in float32, not bf16; remove --precision"):
        opened(precision="bf16")
    with pytest.raises(FeatureError, match="--batch-size needs a checkpoint"):
        opened(batch_size=4)


def test_features_without_clips_and_readouts(tmp_path: Path) -> None:
    features = imported(tmp_path, VALUES[:, 0], name="Other model")
    assert (features.provenance.features, features.provenance.clips) == ("Other model", None)
    np.testing.assert_array_equal(features.table_VF, VALUES[:, 0].astype(np.float32))
    with pytest.raises(FeatureError, match="'Other model' features, which allow the readouts mean, not 'ordered'"):
        with_readout(features, "ordered")
    (tmp_path / "out.h5").unlink()
    ordered = with_readout(imported(tmp_path), "ordered")
    assert ordered.table_VF.shape == (3, 20)
    with pytest.raises(FeatureError, match="mean, ordered, not 'grid'; import"):
        with_readout(ordered, "grid")


def test_many_videos_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmd_eval.features.exchange._VALUES_PER_BLOCK", 40)
    values = np.random.default_rng(1).standard_normal((25, 20))
    features = imported(tmp_path, values, [[f"v{n}", "", "x", "", "", "1"] for n in range(25)])
    np.testing.assert_array_equal(features.mean_VF, values.astype(np.float32))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (VALUES[:2], r"videos\.csv: 3 videos, but .*model\.npy has 2 rows"),
        (VALUES[:, 0, 0], r"shape \(3,\); expected \(videos, features\), or \(videos, clips, features\)"),
        (VALUES[:, :, :0], r"shape \(3, 4, 0\)"),
        (VALUES.astype(complex), "values of type complex128"),
        (np.array([["x"]] * 3), "values of type <U1"),
        (np.array([{}] * 3), r"not a readable \.npy file .*numpy\.save"),
        (np.where(np.arange(3)[:, None, None] == 1, np.nan, VALUES), r"row 1 \(video b\) contains values that are not"),
        (np.where(np.arange(3)[:, None, None] == 2, 1e300, VALUES), r"row 2 \(video c\) contains values that are not"),
    ],
)
def test_bad_arrays_are_rejected(tmp_path: Path, values: np.ndarray, message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        imported(tmp_path, values)
    assert not list(tmp_path.glob("*.h5")), "a failed import leaves no file"


def without(column: int) -> Callable[[Sequence[str]], list[str]]:
    return lambda row: [cell for number, cell in enumerate(row) if number != column]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (
            without(0)(HEADER),
            [without(0)(row) for row in ROWS],
            "columns path, label, group, split1, frame_count; a column 'id'",
        ),
        ([*HEADER[:-1], "label"], ROWS, "and none twice"),
        (HEADER, [*ROWS[:2], ["", *ROWS[2][1:]]], "line 4: the id is missing"),
        (HEADER, [*ROWS[:2], ["a", *ROWS[2][1:]]], "line 4: id 'a' is also in line 2"),
        (HEADER, [*ROWS[:2], ROWS[2][:-1]], "line 4: 5 cells under 6 columns"),
        (HEADER, [*ROWS[:2], [*ROWS[2][:-1], "-3"]], "video c: frame_count '-3' is not a number"),
        ([], [], "columns none; a column 'id' is required"),
    ],
)
def test_bad_tables_are_rejected(tmp_path: Path, header: list[str], rows: list[list[str]], message: str) -> None:
    np.save(tmp_path / "model.npy", VALUES)
    table = write_table(tmp_path / "videos.csv", rows, header)
    with pytest.raises(FeatureError, match=message):
        import_features(tmp_path / "model.npy", table, tmp_path / "out.h5", name=None, shards=None, command="")
    assert not list(tmp_path.glob("*.h5"))


def test_other_files_and_names_are_rejected(tmp_path: Path) -> None:
    imported(tmp_path)
    with pytest.raises(FeatureError, match=r"out\.h5: exists already"):
        imported(tmp_path)
    (tmp_path / "out.h5").unlink()
    for name in ("", "motion descriptor", "backbone, pooled", "a\nb"):
        with pytest.raises(FeatureError, match="is not a name for imported features"):
            imported(tmp_path, name=name)
    (tmp_path / "videos.csv").write_bytes(b"id\n\xff\n")
    np.savez(tmp_path / "two.npz", VALUES)
    for array, message in ((tmp_path / "model.npy", "not a CSV file in UTF-8"), (tmp_path / "two.npz", "an archive")):
        with pytest.raises(FeatureError, match=message):
            import_features(array, tmp_path / "videos.csv", tmp_path / "x.h5", name=None, shards=None, command="")
    (tmp_path / "model.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(FeatureError, match=r"model\.npy: not a readable \.npy file"):
        import_features(
            tmp_path / "model.npy", tmp_path / "videos.csv", tmp_path / "x.h5", name=None, shards=None, command=""
        )


def test_unused_columns_and_missing_hashes_are_noted(tmp_path: Path) -> None:
    np.save(tmp_path / "model.npy", VALUES)
    rows = [[*row, f"hash {row[0]}"] for row in ROWS]
    for header, table, expected in (
        (HEADER, ROWS, ["columns that are not used: path", "no column 'fingerprint'"]),
        ([*HEADER, "fingerprint"], rows, ["columns that are not used: path"]),
    ):
        path = write_table(tmp_path / "videos.csv", table, header)
        out = tmp_path / f"{len(header)}.h5"
        found = import_features(tmp_path / "model.npy", path, out, name=None, shards=None, command="")
        assert [note.startswith(start) for note, start in zip(found.notes, expected, strict=True)] == [True] * len(
            expected
        )
    assert found.features.videos.fingerprints == ("hash a", "hash b", "hash c")


def test_exported_features_are_imported_unchanged(tmp_path: Path) -> None:
    features = features_of(np.random.default_rng(3).standard_normal((3, 2, 4)).astype(np.float32))
    videos = replace(features.videos, ids=("a", 'b,"\n', "ü#0001"))
    features = replace(features, videos=videos)
    for number, (options, expected) in enumerate(
        (({}, features.mean_VF[:, None]), ({"clips": True}, features.clips_VNF))
    ):
        out = tmp_path / f"{number}.npy"
        paths = export_features(features, out, **options)
        assert [path.name for path in paths] == [f"{number}.npy", f"{number}.csv"]
        again = import_features(*paths, tmp_path / f"{number}.h5", name="x", shards=None, command="")
        assert again.features.videos == videos
        np.testing.assert_array_equal(again.features.clips_VNF, expected)
        with pytest.raises(FeatureError, match=r"\.npy: exists already"):
            export_features(features, out)
    export_features(with_readout(features, "ordered"), tmp_path / "ordered.npy")
    assert np.load(tmp_path / "ordered.npy").shape == (3, 8)
    for name, options, message in (
        ("x.txt", {}, r"must end in \.npy or \.parquet"),
        ("x.parquet", {"clips": True}, r"must end in \.npy$"),
    ):
        with pytest.raises(FeatureError, match=message):
            export_features(features, tmp_path / name, **options)


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    features = features_of(VALUES[:, :2, :4].astype(np.float32))
    features = replace(features, videos=replace(features.videos, ids=("a", "b", "c")))
    assert export_features(features, tmp_path / "f.parquet") == [tmp_path / "f.parquet"]
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["id", "label", "group", "fingerprint", "frame_count", "split1", "split_b", "feature"]
    np.testing.assert_array_equal(np.stack(table["feature"].to_pylist()).astype(np.float32), features.mean_VF)
    assert table["id"].to_pylist() == ["a", "b", "c"]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FeatureError, match=r"needs the package pyarrow .*\[parquet\]"):
        export_features(features, tmp_path / "g.parquet")


def test_files_written_by_the_import_are_features_files(tmp_path: Path) -> None:
    features = imported(tmp_path)
    again = read_features(tmp_path / "out.h5")
    assert again.videos == features.videos
    assert again.provenance == features.provenance
