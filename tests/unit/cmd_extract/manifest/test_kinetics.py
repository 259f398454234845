"""Folder layouts of Kinetics in circulation, and lists that do not fit the files one to one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.detect import detect_format
from cmd_extract.manifest.kinetics import from_kinetics
from cmd_extract.manifest.sources import ManifestSource
from tests.unit.cmd_extract.manifest.video_files import touch, write

HEADER = "label,youtube_id,time_start,time_end,split\n"
ROWS = (
    "massaging person's head,aaa,1,11,train\n"
    "eating hotdog (raw),b-_,20,30,validate\n"
    "training dog,ccc,0,10,test\n"
)  # fmt: skip
NAMES = ("aaa_000001_000011.mp4", "b-__000020_000030.mp4", "ccc_000000_000010.mp4")


def read(tmp_path: Path, rows: str, *files: str, missing: str = "error") -> ManifestSource:
    videos = tmp_path / "videos"
    videos.mkdir(exist_ok=True)
    touch(videos, *files)
    return from_kinetics(write(tmp_path / "k.csv", HEADER + rows), videos, root=videos, missing=missing)


@pytest.mark.parametrize(
    "folders",
    [
        ("videos_train/massaging_person's_head", "videos_val/eating_hotdog_(raw)", "videos_test/training_dog"),
        ("train_256/massaging_persons_head", "val_256/eating_hotdog_raw", "test_256/training dog"),
        ("train/part_0", "val/part_0", "test/part_1"),
        ("k400/train", "k400/val", "replacement/replacement_for_corrupted_k400"),
        ("Massaging person's head", "Eating hotdog -raw-", "Training Dog"),
        ("downloads", "downloads", "downloads/more"),
    ],
)
def test_layouts(tmp_path: Path, folders: tuple[str, ...]) -> None:
    paths = [f"{folder}/{name}" for folder, name in zip(folders, NAMES, strict=True)]
    result = read(tmp_path, ROWS, *paths)
    assert [r.path for r in result.records] == paths
    assert [r.splits["split"] for r in result.records] == ["train", "val", "test"]
    assert [r.label for r in result.records] == [row.split(",")[0] for row in ROWS.splitlines()]


def test_replacements_are_preferred_and_counted(tmp_path: Path) -> None:
    result = read(tmp_path, ROWS, *NAMES, f"replacement_for_corrupted/{NAMES[1]}")
    assert [r.path for r in result.records] == [NAMES[0], f"replacement_for_corrupted/{NAMES[1]}", NAMES[2]]
    assert "1 video (b-__000020_000030.mp4) taken from a folder of replacements" in result.notes[0]


def test_all_ambiguous_clips_are_listed_at_once(tmp_path: Path) -> None:
    rows = "".join(f"run,v{n},0,10,train\n" for n in range(9))
    files = [f"v{n}_000000_000010.{extension}" for n in range(9) for extension in ("mp4", "mkv")]
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, rows, *files, missing="skip")
    message = str(caught.value)
    assert "several files match 9 videos" in message
    for number in range(9):
        assert f"k.csv, line {number + 2}: 'v{number}_000000_000010.mkv', 'v{number}_000000_000010.mp4'" in message


def test_files_named_after_the_youtube_id_only(tmp_path: Path) -> None:
    rows = "run,one,5,15,train\nrun,two,0,10,train\nrun,two,20,30,val\n"
    result = read(tmp_path, rows, "train/one.webm", "two.mp4", missing="skip")
    assert [(r.video_id, r.path, r.group) for r in result.records] == [("one_000005_000015", "train/one.webm", "one")]
    assert result.missing == ("two_000000_000010", "two_000020_000030"), "two.mp4 may be either clip"
    assert "named after their YouTube id only" in "\n".join(result.notes)


def test_class_folders_may_have_another_normalization_than_the_labels(tmp_path: Path) -> None:
    rows = "caf\u00e9,a,0,10,train\nrun,b,0,10,train\n"
    assert len(read(tmp_path, rows, "cafe\u0301/a_0_10.mp4", "run/b_0_10.mp4").records) == 2


def test_times_in_file_names_need_no_zeros(tmp_path: Path) -> None:
    assert read(tmp_path, "run,a_b,5,15,train\n", "a_b_5_15.mp4").records[0].video_id == "a_b_000005_000015"


def test_one_clip_under_two_labels(tmp_path: Path) -> None:
    rows = "weaving fabric,abc,0,10,val\nyarn spinning,abc,0,10,val\nyarn spinning,abc,10,20,val\n"
    both = ("weaving fabric/abc_000000_000010.mp4", "yarn_spinning/abc_000000_000010.mp4")
    result = read(tmp_path, rows, *both, "abc_000010_000020.mp4")
    assert [(r.video_id, r.path, r.label) for r in result.records] == [
        ("weaving fabric/abc_000000_000010", both[0], "weaving fabric"),
        ("yarn spinning/abc_000000_000010", both[1], "yarn spinning"),
        ("abc_000010_000020", "abc_000010_000020.mp4", "yarn spinning"),
    ]
    assert "1 clip (abc_000000_000010) listed under several labels" in "\n".join(result.notes)


def test_files_in_folders_of_other_labels_and_parts_do_not_match(tmp_path: Path) -> None:
    rows = "run,a,0,10,train\nwalk,b,0,10,val\n"
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, rows, "walk/a_000000_000010.mp4", "train/b_000000_000010.mp4")
    message = str(caught.value)
    assert "'walk/a_000000_000010.mp4' is in a folder of another label or part" in message
    assert "'train/b_000000_000010.mp4' is in a folder of another label or part" in message


def test_other_csv_files_among_the_lists_are_ignored(tmp_path: Path) -> None:
    write(tmp_path / "lists" / "kinetics_labels.csv", "id,name\n0,run\n")
    write(tmp_path / "lists" / "train.csv", f"\ufeff{HEADER}run,a,0,10,train\n")
    write(tmp_path / "lists" / "._train.csv", "\0\5\x16\7\0")
    touch(tmp_path / "videos", "a_000000_000010.mp4")
    assert detect_format(tmp_path / "lists") == "kinetics"
    result = from_kinetics(tmp_path / "lists", tmp_path / "videos", root=tmp_path)
    assert len(result.records) == 1
    assert "ignored 1 CSV file (kinetics_labels.csv) without 'youtube_id'" in result.notes[0]
