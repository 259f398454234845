from pathlib import Path

import pytest

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.records import read_manifest, resolve_path, write_manifest
from cmd_extract.schema import VideoRecord
from tests.unit.cmd_extract.manifest.video_files import AWKWARD_NAMES, touch, write


def record(row: int, **changes: object) -> VideoRecord:
    values: dict[str, object] = {
        "row": row,
        "video_id": f"v{row}",
        "path": f"v{row}.mp4",
        "splits": {"split1": "train"},
    }
    return VideoRecord(**(values | changes))  # type: ignore[arg-type] # of many types


def test_awkward_paths_survive_a_round_trip(tmp_path: Path) -> None:
    touch(tmp_path, *AWKWARD_NAMES)
    records = tuple(
        record(row, path=name, label="a, b", group='g"1', splits={"split2": "test", "split1": ""})
        for row, name in enumerate(AWKWARD_NAMES)
    )
    write_manifest(records, tmp_path / "m.csv")
    first = (tmp_path / "m.csv").read_bytes()
    read = read_manifest(tmp_path / "m.csv")
    assert read == records
    assert [resolve_path(r, tmp_path).read_bytes() for r in read] == [b""] * len(records)
    assert b"latin1-\xe9\xff.mp4" in first
    write_manifest(read, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == first
    assert {p.name for p in tmp_path.iterdir()} == {*AWKWARD_NAMES, "m.csv", "again.csv"}


def test_optional_columns_any_order_bom_crlf_and_blank_lines(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "a.mp4", "b.mp4")
    path = tmp_path / "m.csv"
    path.write_bytes(b"\xef\xbb\xbfsplit,path,id\r\ntrain,a.mp4,one\r\n\r\n,b.mp4,two\r\n")
    read = read_manifest(path, root=tmp_path / "videos")
    assert read == (
        VideoRecord(row=0, video_id="one", path="a.mp4", splits={"split": "train"}),
        VideoRecord(row=1, video_id="two", path="b.mp4", splits={"split": ""}),
    )


def test_relative_paths_start_at_the_manifest_and_absolute_paths_stay(tmp_path: Path) -> None:
    touch(tmp_path / "m", "a.mp4")
    touch(tmp_path / "elsewhere", "b.mp4")
    path = write(tmp_path / "m" / "m.csv", f"id,path\none,a.mp4\ntwo,{tmp_path}/elsewhere/b.mp4\n")
    assert [resolve_path(r, path.parent).name for r in read_manifest(path)] == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("id,path\n", "no rows"),
        ("path,label\na,b\n", "line 1: no column 'id'"),
        ("id;path\na;b\n", r"line 1: no column 'id' and no column 'path' in the header \(id;path\); rename the column"),
        ("id,path,fps\na,b,3\n", "line 1: unknown column 'fps'; allowed: id, path, label, group and split"),
        ("id,path,split/1\na,b,\n", "unknown column 'split/1'"),
        ("id,path,path\na,b,b\n", "duplicate column 'path'"),
        ("id,path\na,x\nb\n", "line 3: 1 cells for 2 columns"),
        ("id,path\na,x\na,y\n", "line 3, column 'id': 'a' is also the id of line 2"),
        ('id,path\na,"x\ny"\n,z\n', "line 4, column 'id': '' is empty"),
        ("id,path\na,\n", "line 2, column 'path': '' is empty"),
        ("id,path\na\tb,x\n", r"line 2, column 'id': 'a\\tb' contains a control character at position 1"),
        ("id,path,label\na,x,\u2028\n", "column 'label'.*white space"),
        ("id,path,label\na,x,run \n", "column 'label': 'run ' starts or ends with white space"),
        ("id,path,group\na,x,g\x1b[0m\n", "column 'group'.*control character"),
        ("id,path,split\na,x,Train\n", "column 'split': 'Train' is not a split part; allowed: train, val, test"),
        ('id,path\na,"x\n', "line 2: not valid CSV"),
        ("i\0d\n", "NUL"),
    ],
)
def test_errors_name_line_column_and_value(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path / "bad.csv", text)
    with pytest.raises(ManifestError, match=expected) as caught:
        read_manifest(path, check_paths=False)
    assert str(path) in str(caught.value)


def test_only_paths_may_contain_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b"id,path,label\na,x,caf\xe9\n")
    with pytest.raises(ManifestError, match=r"line 2, column 'label'.*not UTF-8 at position 3"):
        read_manifest(path, check_paths=False)


def test_missing_videos_are_counted_and_five_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "v3.mp4")
    rows = "".join(f"id{n},v{n}.mp4\n" for n in range(8)) + f"long,{'x' * 300}\n"
    path = write(tmp_path / "m.csv", f"id,path\n{rows}")
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert "8 videos" in message
    assert "line 2, column 'path': 'v0.mp4'" in message
    assert "line 7, column 'path': 'v5.mp4'" in message
    assert "v6.mp4" not in message
    assert "and 3 more) of 9 not found" in message
    assert len(read_manifest(path, check_paths=False)) == 9


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.csv: cannot be read"):
        read_manifest(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], "no videos"),
        ([record(1)], "row number is 1"),
        ([record(0), record(1, video_id="v0")], "same id"),
        ([record(0), record(1, splits={})], "split columns"),
        ([record(0, splits={"fold": "train"})], "'fold'"),
        ([record(0, label="a\n")], "label"),
        ([record(0, splits={"split1": "dev"})], "split1"),
        ([record(0, path="a\ud800")], "cannot be written as UTF-8"),
        ([record(0, path="\udcc3\udca9")], "cannot be written as UTF-8"),
    ],
)
def test_records_that_cannot_be_read_back_are_not_written(
    tmp_path: Path, records: list[VideoRecord], expected: str
) -> None:
    path = write(tmp_path / "m.csv", "kept")
    with pytest.raises(ManifestError, match=expected):
        write_manifest(records, path)
    assert path.read_text() == "kept"
