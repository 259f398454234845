from pathlib import Path

import pytest

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.datasets import from_hmdb51, from_ucf101, hmdb51_film
from cmd_extract.manifest.detect import detect_format
from cmd_extract.manifest.kinetics import from_kinetics
from cmd_extract.manifest.records import read_manifest, write_manifest
from cmd_extract.manifest.sources import from_csv, from_folder
from cmd_extract.schema import VideoRecord
from tests.unit.cmd_extract.manifest.video_files import AWKWARD_NAMES, touch, write


def test_from_csv(tmp_path: Path) -> None:
    touch(tmp_path / "data", "a/x.avi", "a/x.mp4", "b/y.avi")
    source = write(
        tmp_path / "lists" / "all.csv",
        "path,label,group,split1,split2,split3,fps\n"
        "a/x.avi,run,g1,Training,validation,,25\na/x.mp4,run,g1,test,val,,25\nb/y.avi,walk,,train,,test,25\n",
    )
    result = from_csv(source, root=tmp_path, videos=tmp_path / "data")
    assert [(r.video_id, r.path, r.label, r.group) for r in result.records] == [
        ("a/x.avi", "data/a/x.avi", "run", "g1"),
        ("a/x.mp4", "data/a/x.mp4", "run", "g1"),
        ("b/y", "data/b/y.avi", "walk", ""),
    ]
    assert result.records[0].splits == {"split1": "train", "split2": "val", "split3": ""}
    assert len(result.notes) == 1
    assert "1 column ('fps')" in result.notes[0]
    write_manifest(result.records, tmp_path / "m.csv")
    assert read_manifest(tmp_path / "m.csv") == result.records


def test_paths_outside_the_root_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "data", "a.avi")
    (tmp_path / "root").mkdir()
    source = write(tmp_path / "data" / "all.csv", "path,id\na.avi,one\n")
    assert from_csv(source, root=tmp_path / "root").records[0].path == f"{tmp_path}/data/a.avi"
    assert from_csv(source, root=tmp_path / "root" / ".." / "data").records[0].path == "a.avi"
    assert from_csv(source, root=tmp_path / "not" / "yet").records[0].path == f"{tmp_path}/data/a.avi"
    monkeypatch.chdir(tmp_path)
    assert from_csv(Path("data/all.csv"), root=Path()).records[0].path == "data/a.avi"


def test_from_csv_errors(tmp_path: Path) -> None:
    touch(tmp_path, "a.avi")
    source = write(tmp_path / "all.csv", "path\na.avi\nb.avi\n")
    with pytest.raises(ManifestError, match=r"1 video \(.*all\.csv, line 3: .*b\.avi'\) of 2 not found"):
        from_csv(source, root=tmp_path)
    source = write(tmp_path / "ids.csv", "path,id\na.avi,one\na.avi,one\n")
    with pytest.raises(ManifestError, match=r"ids\.csv, line 3 \(id 'one'\).*ids\.csv, line 2.*same id"):
        from_csv(source, root=tmp_path)
    with pytest.raises(ManifestError, match="no column 'path'"):
        from_csv(write(tmp_path / "no.csv", "file\na.avi\n"), root=tmp_path)


def test_from_folder(tmp_path: Path) -> None:
    touch(tmp_path, "run/b.mp4", "run/a.MP4", "run/deep/er/c.avi", "walk/d.webm", "loose.mkv")
    touch(tmp_path, "run/notes.txt", "run/._b.mp4", ".cache/x.mp4", "walk/README")
    result = from_folder(tmp_path, root=tmp_path)
    assert [(r.video_id, r.path, r.label) for r in result.records] == [
        ("loose", "loose.mkv", ""),
        ("run/a", "run/a.MP4", "run"),
        ("run/b", "run/b.mp4", "run"),
        ("run/deep/er/c", "run/deep/er/c.avi", "run"),
        ("walk/d", "walk/d.webm", "walk"),
    ]
    assert all(r.splits == {} for r in result.records)
    notes = "\n".join(result.notes)
    assert "1 of 5 videos are outside class folders" in notes
    assert "ignored 2 files without a video extension (1 .txt, 1 no extension)" in notes
    assert "ignored 2 hidden" in notes


def test_from_folder_with_split_parts(tmp_path: Path) -> None:
    touch(tmp_path, "train/run/a.mp4", "val/run/b.mp4", "test/c.mp4")
    result = from_folder(tmp_path, root=tmp_path)
    assert [(r.video_id, r.label, r.splits["split"]) for r in result.records] == [
        ("test/c", "", "test"),
        ("train/run/a", "run", "train"),
        ("val/run/b", "run", "val"),
    ]


def test_from_folder_with_awkward_names_links_and_loops(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    touch(folder, *(f"class\n1/{name}" for name in AWKWARD_NAMES if name.endswith(".mp4")))
    touch(tmp_path / "real", "z.mp4")
    (folder / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to(folder)
    result = from_folder(folder, root=tmp_path)
    write_manifest(result.records, tmp_path / "m.csv")
    assert read_manifest(tmp_path / "m.csv") == result.records
    ids = [r.video_id for r in result.records]
    assert "class%0A1/latin1-%E9%FF" in ids
    assert "linked/z" in ids
    assert {r.label for r in result.records} == {"class%0A1", "linked"}


def test_from_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such folder"):
        from_folder(tmp_path / "none", root=tmp_path)
    with pytest.raises(ManifestError, match="no videos found"):
        from_folder(tmp_path, root=tmp_path)


def ucf101(tmp_path: Path) -> tuple[Path, Path]:
    names = [f"Class{c}/v_Class{c}_g0{g}_c0{n}.avi" for c in "AB" for g in (1, 2) for n in (1, 2)]
    touch(tmp_path / "videos", *names)
    lists = tmp_path / "lists"
    write(lists / "classInd.txt", "1 ClassA\r\n2 ClassB\r\n")
    for split, held_out in ((1, "g01"), (2, "g02")):
        train = [f"{n} {1 + n.startswith('ClassB')}" for n in names if held_out not in n]
        write(lists / f"trainlist0{split}.txt", "\r\n".join(train) + "\r\n")
        write(lists / f"testlist0{split}.txt", "\r\n".join(n for n in names if held_out in n) + "\r\n")
    return tmp_path / "videos", lists


def test_from_ucf101(tmp_path: Path) -> None:
    videos, lists = ucf101(tmp_path)
    records = from_ucf101(videos, lists, root=tmp_path).records
    assert len(records) == 8
    assert records[0] == VideoRecord(
        row=0,
        video_id="ClassA/v_ClassA_g01_c01",
        path="videos/ClassA/v_ClassA_g01_c01.avi",
        label="ClassA",
        group="v_ClassA_g01",
        splits={"split1": "test", "split2": "train"},
    )
    for split in ("split1", "split2"):
        groups = [{r.group for r in records if r.splits[split] == part} for part in ("train", "test")]
        assert len(groups[0]) == len(groups[1]) == 2
        assert not groups[0] & groups[1]


def test_from_ucf101_errors(tmp_path: Path) -> None:
    videos, lists = ucf101(tmp_path)
    (videos / "ClassA/v_ClassA_g01_c02.avi").unlink()
    with pytest.raises(ManifestError, match=r"1 video \(.*testlist01\.txt, line 2.*v_ClassA_g01_c02\.avi"):
        from_ucf101(videos, lists, root=tmp_path)
    write(lists / "trainlist01.txt", "ClassA/v_ClassA_g02_c01.avi 2\n")
    with pytest.raises(
        ManifestError, match=r"trainlist01\.txt, line 1: class number 2, but 1 for ClassA in classInd\.txt"
    ):
        from_ucf101(videos, lists, root=tmp_path)
    write(lists / "trainlist01.txt", "ClassA/v_ClassA_g01_c01.avi 1\n")
    with pytest.raises(ManifestError, match=r"listed as 'train', but earlier as 'test' \(split1\)"):
        from_ucf101(videos, lists, root=tmp_path)
    write(lists / "trainlist01.txt", "nonsense\n")
    with pytest.raises(ManifestError, match="'nonsense' does not have the form"):
        from_ucf101(videos, lists, root=tmp_path)
    (lists / "trainlist01.txt").unlink()
    with pytest.raises(ManifestError, match=r"trainlist01\.txt is missing"):
        from_ucf101(videos, lists, root=tmp_path)


def test_from_hmdb51(tmp_path: Path) -> None:
    first, second = "Run_Lola_run_run_f_cm_np1_ba_med_0", "Run_Lola_run_run_l_nm_np1_fr_goo_12"
    touch(tmp_path / "videos", f"run/{first}.avi", f"run/{second}.avi", f"brush_hair/{first}.avi", "brush_hair/x.avi")
    for split, parts in ((1, "12"), (2, "20")):
        lists = tmp_path / "lists"
        write(lists / f"run_test_split{split}.txt", f"{first}.avi {parts[0]} \n{second}.avi {parts[1]} \n")
        write(lists / f"brush_hair_test_split{split}.txt", f"{first}.avi {parts[0]} \nx.avi {parts[1]} \n")
    result = from_hmdb51(tmp_path / "videos", tmp_path / "lists", root=tmp_path)
    assert [(r.video_id, r.label, r.group, dict(r.splits)) for r in result.records] == [
        (f"brush_hair/{first}", "brush_hair", "Run_Lola_run_run", {"split1": "train", "split2": "test"}),
        ("brush_hair/x", "brush_hair", "x", {"split1": "test", "split2": ""}),
        (f"run/{first}", "run", "Run_Lola_run", {"split1": "train", "split2": "test"}),
        (f"run/{second}", "run", "Run_Lola_run", {"split1": "test", "split2": ""}),
    ]
    assert len(result.notes) == 1
    assert "no source film in the names of 1 video" in result.notes[0]
    (tmp_path / "lists" / "run_test_split2.txt").unlink()
    with pytest.raises(ManifestError, match=r"run_test_split2\.txt is missing"):
        from_hmdb51(tmp_path / "videos", tmp_path / "lists", root=tmp_path)


def test_source_film_of_hmdb51_clips() -> None:
    assert hmdb51_film("April_09_brush_hair_u_nm_np1_ba_goo_0", "brush_hair") == "April_09"
    assert hmdb51_film("#437_How_To_Ride_A_Bike_ride_bike_f_cm_np1_le_med_0", "ride_bike") == "#437_How_To_Ride_A_Bike"
    assert hmdb51_film("Movie_jumping_f_cm_np1_le_bad_3", "jump") == "Movie_jumping"


KINETICS_ROWS = (
    "label,youtube_id,time_start,time_end,split,is_cc\n"
    "air drumming,-abc,3,13,train,0\n"
    "air drumming,d_f,20,30,validate,0\n"
    "zumba,ghi,0,10,test,1\n"
)


def test_from_kinetics_in_every_layout(tmp_path: Path) -> None:
    source = write(tmp_path / "all.csv", KINETICS_ROWS)
    layouts = {
        "split and label": ("train/air drumming/", "validate/air drumming/", "test/zumba/"),
        "underscores": ("train/air_drumming/", "val/air_drumming/", "test/zumba/"),
        "label": ("air drumming/", "air_drumming/", "zumba/"),
        "split": ("train/", "val/", "test/"),
        "flat": ("", "", ""),
    }
    for layout, folders in layouts.items():
        names = ("-abc_000003_000013.mp4", "d_f_000020_000030.webm", "ghi_000000_000010.mkv")
        paths = [f"{folder}{name}" for folder, name in zip(folders, names, strict=True)]
        touch(tmp_path / layout, *paths)
        result = from_kinetics(source, tmp_path / layout, root=tmp_path / layout)
        assert [r.path for r in result.records] == paths, layout
        assert [r.splits["split"] for r in result.records] == ["train", "val", "test"]
        assert [r.group for r in result.records] == ["-abc", "d_f", "ghi"]
        assert [r.label for r in result.records] == ["air drumming", "air drumming", "zumba"]
        assert result.notes == ()


def test_from_kinetics_missing_videos(tmp_path: Path) -> None:
    source = write(tmp_path / "all.csv", KINETICS_ROWS)
    touch(tmp_path / "videos", "-abc_000003_000013.mp4", "air drumming/ghi_000000_000010.mp4")
    with pytest.raises(
        ManifestError, match=r"2 videos \(.*all\.csv, line 3: d_f_000020_000030.* of 3 not found"
    ) as caught:
        from_kinetics(source, tmp_path / "videos", root=tmp_path)
    assert "ghi_000000_000010, but 'air drumming/ghi_000000_000010.mp4' is in a folder of another label" in str(
        caught.value
    )
    result = from_kinetics(source, tmp_path / "videos", root=tmp_path, missing="skip")
    assert [(r.row, r.video_id) for r in result.records] == [(0, "-abc_000003_000013")]
    assert result.missing == ("d_f_000020_000030", "ghi_000000_000010")
    assert "2 videos" in result.notes[0]
    assert "skipped" in result.notes[0]
    with pytest.raises(ValueError, match="missing: must be error or skip, got 'ignore'"):
        from_kinetics(source, tmp_path / "videos", root=tmp_path, missing="ignore")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="3 videos"):
        from_kinetics(source, tmp_path / "empty", root=tmp_path, missing="skip")


def test_from_kinetics_folder_of_lists_without_labels_and_ambiguity(tmp_path: Path) -> None:
    write(tmp_path / "lists" / "test.csv", "youtube_id,time_start,time_end,split\nabc,1,11,test\n")
    write(tmp_path / "lists" / "train.csv", "label,youtube_id,time_start,time_end,split\nrun,xyz,1,11.0,train\n")
    touch(tmp_path / "videos", "test/abc_000001_000011.mp4", "train/run/xyz_000001_000011.mp4")
    result = from_kinetics(tmp_path / "lists", tmp_path / "videos", root=tmp_path)
    assert [(r.label, r.splits["split"]) for r in result.records] == [("", "test"), ("run", "train")]
    touch(tmp_path / "videos", "run/xyz_000001_000011.mp4")
    with pytest.raises(ManifestError, match=r"train\.csv, line 2: .*'run/xyz.*', 'train/run/xyz.*keep one"):
        from_kinetics(tmp_path / "lists", tmp_path / "videos", root=tmp_path)


def test_detect_format(tmp_path: Path) -> None:
    _, lists = ucf101(tmp_path)
    write(tmp_path / "hmdb" / "run_test_split1.txt", "a.avi 1\n")
    kinetics = write(tmp_path / "k" / "train.csv", KINETICS_ROWS)
    assert detect_format(lists) == "ucf101"
    assert detect_format(tmp_path / "videos") == "folder"
    assert detect_format(tmp_path / "hmdb") == "hmdb51"
    assert detect_format(kinetics) == "kinetics"
    assert detect_format(tmp_path / "k") == "kinetics"
    assert detect_format(write(tmp_path / "c.csv", "label,path\nx,y\n")) == "csv"
    for source, expected in (
        (write(tmp_path / "bad.csv", "a,b\n1,2\n"), "neither a column 'path'"),
        (tmp_path / "none", "no such file"),
    ):
        with pytest.raises(ManifestError, match=expected):
            detect_format(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="no trainlist"):
        detect_format(tmp_path / "empty")


def test_the_output_of_an_extraction_is_not_a_dataset(tmp_path: Path) -> None:
    out = tmp_path / "shards"
    touch(out, "shard-00000.h5", "index.json", "run.json")
    write(out / "failures.csv", "row,id,stage,reason\n")
    for damaged in ("", "3,v3,decode errors\n"):
        write(out / "damaged.csv", f"row,id,damage\n{damaged}")
        with pytest.raises(
            ManifestError, match="contains shards, the output of an extraction; give the folder or list"
        ):
            detect_format(out)
    touch(out, "run/a.mp4")
    assert detect_format(out) == "folder", "videos in the same folder as their shards"
