"""Lists as people have them: byte order marks, files of macOS, no header, spaces, other Unicode normalizations."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from cmd_extract.cli.main import main
from cmd_extract.errors import ManifestError
from cmd_extract.manifest.datasets import from_hmdb51, from_ucf101
from cmd_extract.manifest.detect import detect_format
from cmd_extract.manifest.records import read_manifest, write_manifest
from cmd_extract.manifest.sources import from_csv, from_folder, from_list, part_of_folder
from cmd_extract.schema import VideoRecord
from tests.command_line import outcome
from tests.unit.cmd_extract.manifest.video_files import touch, write

BOM = "\ufeff"
NFC, NFD = (unicodedata.normalize(form, "Übung é") for form in ("NFC", "NFD"))


def test_byte_order_marks_in_all_split_files(tmp_path: Path) -> None:
    touch(tmp_path / "v", "A/v_A_g01_c01.avi", "A/v_A_g02_c01.avi", "run/x_run_f_cm_np1_ba_med_1.avi")
    ucf, hmdb = tmp_path / "ucf", tmp_path / "hmdb"
    write(ucf / "classInd.txt", f"{BOM}1 A\r\n")
    write(ucf / "trainlist01.txt", f"{BOM}A/v_A_g01_c01.avi 1\r\n")
    write(ucf / "testlist01.txt", f"{BOM}A/v_A_g02_c01.avi\r\n")
    write(hmdb / "run_test_split1.txt", f"{BOM}x_run_f_cm_np1_ba_med_1.avi 1 \r\n")
    assert [r.label for r in from_ucf101(tmp_path / "v", ucf, root=tmp_path).records] == ["A", "A"]
    assert [r.label for r in from_hmdb51(tmp_path / "v", hmdb, root=tmp_path).records] == ["run"]


def test_hidden_files_among_split_files_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path / "v", "A/v_A_g01_c01.avi", "A/v_A_g02_c01.avi", "run/x_run_f_cm_np1_ba_med_1.avi")
    ucf, hmdb = tmp_path / "ucf", tmp_path / "hmdb"
    write(ucf / "trainlist01.txt", "A/v_A_g01_c01.avi 1\n")
    write(ucf / "testlist01.txt", "A/v_A_g02_c01.avi\n")
    write(hmdb / "run_test_split1.txt", "x_run_f_cm_np1_ba_med_1.avi 1\n")
    for path in (ucf / "._trainlist01.txt", ucf / "._trainlist02.txt", hmdb / "._run_test_split2.txt"):
        write(path, "\0\5\x16\7\0Mac OS X")
    assert detect_format(ucf) == "ucf101"
    assert detect_format(hmdb) == "hmdb51"
    assert len(from_ucf101(tmp_path / "v", ucf, root=tmp_path).records) == 2
    assert len(from_hmdb51(tmp_path / "v", hmdb, root=tmp_path).records) == 1
    only = tmp_path / "only"
    write(only / "._trainlist01.txt", "\0")
    touch(only, "run/a.mp4")
    assert detect_format(only) == "folder"


def test_utf16_lists_are_named(tmp_path: Path) -> None:
    path = tmp_path / "trainlist01.txt"
    path.write_text("A/v_A_g01_c01.avi 1\n", encoding="utf-16")
    write(tmp_path / "testlist01.txt", "")
    with pytest.raises(ManifestError, match=r"trainlist01\.txt: contains NUL bytes; save it as UTF-8 text, not UTF-16"):
        from_ucf101(tmp_path, tmp_path, root=tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "run/a b.mp4 run\nc.AVI brush hair\n",
        f"{BOM}run/a b.mp4,run\r\nc.AVI,brush hair\r\n",
        "run/a b.mp4\trun\n\nc.AVI\tbrush hair\n",
        '"run/a b.mp4", run\nc.AVI, "brush hair"\n',
    ],
)
def test_lists_without_a_header(tmp_path: Path, text: str) -> None:
    touch(tmp_path / "videos", "run/a b.mp4", "c.AVI")
    source = write(tmp_path / "list.txt", text)
    assert detect_format(source) == "list"
    result = from_list(source, root=tmp_path, videos=tmp_path / "videos")
    assert [(r.video_id, r.path, r.label) for r in result.records] == [
        ("run/a b", "videos/run/a b.mp4", "run"),
        ("c", "videos/c.AVI", "brush hair"),
    ]
    assert "no header" in result.notes[0]


def test_lists_without_a_header_or_labels(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    source = write(tmp_path / "list.csv", "a.mp4\n")
    assert from_list(source, root=tmp_path).records == (VideoRecord(row=0, video_id="a", path="a.mp4"),)
    with pytest.raises(ManifestError, match=r"list\.csv, line 2: 'b 3' does not have the form 'video\.mp4 label'"):
        from_list(write(source, "a.mp4\nb 3\n"), root=tmp_path)
    with pytest.raises(ManifestError, match="name the column of the video files 'path'"):
        detect_format(write(source, "video,label\na.mp4,x\n"))


def test_spaces_after_the_commas_of_the_header(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b,c.mp4")
    source = write(tmp_path / "all.csv", 'path, label , split\na.mp4, run, train\n"b,c.mp4", "a, b",\n')
    assert detect_format(source) == "csv"
    records = from_csv(source, root=tmp_path).records
    assert [(r.path, r.label, r.splits) for r in records] == [
        ("a.mp4", "run", {"split": "train"}),
        ("b,c.mp4", "a, b", {"split": ""}),
    ]
    with pytest.raises(ManifestError, match="line 1: column ' label ' starts or ends with white space; remove it"):
        read_manifest(write(source, "id,path, label \na,a.mp4, run\n"))


def test_without_spaces_in_the_header_cells_stay_as_they_are(tmp_path: Path) -> None:
    touch(tmp_path, " a.mp4")
    source = write(tmp_path / "all.csv", "path,id\n a.mp4,x\n")
    assert from_csv(source, root=tmp_path).records[0].path == " a.mp4"


def test_labels_that_differ_in_normalization_only_are_noted(tmp_path: Path) -> None:
    touch(tmp_path, f"{NFC}/a.mp4", f"{NFD}/b.mp4")
    result = from_folder(tmp_path, root=tmp_path)
    assert len({r.label for r in result.records}) == 2
    assert len(result.notes) == 1
    assert "1 pair" in result.notes[0]
    assert "(NFD)" in result.notes[0]
    assert "of labels differ in Unicode normalization only" in result.notes[0]


@pytest.mark.parametrize(("on_disk", "listed"), [(NFC, NFD), (NFD, NFC)])
def test_a_file_with_another_normalization_is_hinted_at(tmp_path: Path, on_disk: str, listed: str) -> None:
    touch(tmp_path, f"é{on_disk}/{on_disk}.mp4")
    source = write(tmp_path / "all.csv", f"path\né{listed}/{listed}.mp4\n")
    manifest = write(tmp_path / "m.csv", f"id,path\na,é{listed}/{listed}.mp4\n")
    for read in (lambda: from_csv(source, root=tmp_path), lambda: read_manifest(manifest)):
        with pytest.raises(ManifestError, match="exists, with another Unicode normalization of its name") as caught:
            read()
        assert f"é{on_disk}/{on_disk}.mp4' exists" in str(caught.value)
    with pytest.raises(ManifestError) as caught:
        from_csv(write(source, "path\nnone/x.mp4\n"), root=tmp_path)
    assert "normalization" not in str(caught.value)


def test_parts_among_folder_names(tmp_path: Path) -> None:
    for name, part in {
        "train": "train", "Validation": "val", "videos_train": "train", "val_256": "val", "k400-test": "test",
        "training dog": None, "train_test": None, "trainer": None, "replacement": None, "run": None,
    }.items():  # fmt: skip
        assert part_of_folder(name) == part, name
    touch(tmp_path / "mm", "videos_train/run/a.mp4", "videos_val/run/b.mp4")
    result = from_folder(tmp_path / "mm", root=tmp_path)
    assert [(r.label, r.splits["split"]) for r in result.records] == [("run", "train"), ("run", "val")]
    touch(tmp_path / "mixed", "train/a.mp4", "other/b.mp4")
    result = from_folder(tmp_path / "mixed", root=tmp_path)
    assert [r.label for r in result.records] == ["other", "train"]
    assert "1 top-level folder ('train') named like split parts, but taken as classes" in result.notes[0]


def test_long_manifest_names(tmp_path: Path) -> None:
    longest = tmp_path / f"{'é' * 125}.csv"
    write_manifest([VideoRecord(row=0, video_id="a", path="a.mp4")], longest)
    assert longest.exists()
    touch(tmp_path / "videos", "a.mp4")
    for path in (tmp_path / f"{'x' * 300}.csv", tmp_path / f"{'y/' * 3000}m.csv"):
        code, output = outcome(main, "manifest", tmp_path / "videos", path)
        assert code == 1
        assert output.endswith("the file system does not allow such long names; choose a shorter one\n")
        assert ".extract-" not in output
