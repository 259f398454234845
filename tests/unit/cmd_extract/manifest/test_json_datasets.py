from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.detect import detect_format
from cmd_extract.manifest.json_datasets import from_diving48, from_ssv2
from tests.unit.cmd_extract.manifest.video_files import touch, write


def write_json(path: Path, content: Any, bom: str = "") -> Path:
    return write(path, bom + json.dumps(content))


@pytest.fixture
def ssv2(tmp_path: Path) -> Path:
    """Lists with one video for training, one for validation and two for testing; the videos are in ``videos``."""
    lists = tmp_path / "labels"
    holding = {"label": "holding cup", "template": "Holding [something]", "placeholders": ["cup"]}
    write_json(lists / "train.json", [{"id": "74225", **holding}], bom="\ufeff")
    write_json(lists / "validation.json", [{"id": "74", "template": "Moving [part] of [something]"}])
    write_json(lists / "test.json", [{"id": "1"}, {"id": "2"}])
    write_json(lists / "labels.json", {"Holding something": "0", "Moving part of something": "1"})
    write(lists / "._train.json", "\0")
    touch(tmp_path / "videos", "74225.webm", "20bn-something-something-v2/74.webm", "1.webm", "2.mp4", "9.webm")
    return lists


def test_from_ssv2(ssv2: Path, tmp_path: Path) -> None:
    assert detect_format(ssv2) == "ssv2"
    result = from_ssv2(ssv2, tmp_path / "videos", root=tmp_path / "videos")
    assert [(r.video_id, r.path, r.label, r.splits["split"]) for r in result.records] == [
        ("1", "1.webm", "", "test"),
        ("2", "2.mp4", "", "test"),
        ("74225", "74225.webm", "Holding something", "train"),
        ("74", "20bn-something-something-v2/74.webm", "Moving part of something", "val"),
    ]
    write(ssv2 / "test-answers.csv", "1;Holding something\n2;Moving part of something\n")
    labels = [r.label for r in from_ssv2(ssv2, tmp_path / "videos", root=tmp_path).records]
    assert labels == ["Holding something", "Moving part of something", "Holding something", "Moving part of something"]
    one = write_json(tmp_path / "something-something-v2-train.json", [{"id": "1", "template": "Holding [something]"}])
    assert detect_format(one) == "ssv2"
    assert from_ssv2(one, tmp_path / "videos", root=tmp_path).records[0].splits == {"split": "train"}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "train.json",
            [{"id": "74225", "template": "Losing [something]"}],
            "'Losing \\[something\\]' is not in the list",
        ),
        ("train.json", [{"id": "5", "template": "Holding [something]"}], r"1 video \(.*train\.json, item 1: 5\) of 4"),
        ("train.json", [{"id": "74225"}, "x"], "train.json, item 2: 'x' is not an object"),
        ("train.json", [{"id": "74225"}, {"id": None}], "train.json, item 2, 'id': None is not a string"),
        ("train.json", [{"id": "a/b"}], "train.json, item 1, 'id': 'a/b' is not the name of a video"),
        ("more.json", [{"id": "74225"}], "more.json: the name of a list must contain one of train, "),
    ],
)
def test_invalid_ssv2_lists(ssv2: Path, tmp_path: Path, name: str, content: Any, expected: str) -> None:
    write_json(ssv2 / name, content)
    with pytest.raises(ManifestError, match=expected):
        from_ssv2(ssv2, tmp_path / "videos", root=tmp_path)


def test_several_files_of_ssv2_are_listed(ssv2: Path, tmp_path: Path) -> None:
    touch(tmp_path / "videos", "1.mp4", "more/2.webm")
    with pytest.raises(ManifestError, match=r"match 2 videos \(.*'1\.mp4', '1\.webm'; .*'2\.mp4', 'more/2\.webm'\)"):
        from_ssv2(ssv2, tmp_path / "videos", root=tmp_path)


def test_truncated_json_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "train.json", '[{"id": "1"}, {"id":')
    with pytest.raises(ManifestError, match=r"train\.json: not valid JSON .*download it again"):
        detect_format(source)
    with pytest.raises(ManifestError, match="neither a list of objects with 'id'"):
        detect_format(write_json(source, {"url": "x"}))


def test_from_diving48(tmp_path: Path) -> None:
    lists, videos = tmp_path / "lists", tmp_path / "videos"
    clip = {"start_frame": 0, "end_frame": 90}
    write_json(lists / "Diving48_V2_train.json", [{"vid_name": "-mX_s_00001", "label": 1, **clip}])
    write_json(lists / "Diving48_V2_test.json", [{"vid_name": "-mX_s_00002", "label": 0, **clip}])
    touch(videos, "rgb/-mX_s_00001.mp4", "rgb/-mX_s_00002.mp4")
    assert detect_format(lists) == "diving48"
    result = from_diving48(lists, videos, root=videos)
    assert [r.label for r in result.records] == ["0", "1"], "without a vocabulary"
    write_json(
        lists / "Diving48_vocab.json", [["Back", "15som", "05Twis", "FREE"], ["Back", "15som", "NoTwis", "PIKE"]]
    )
    write_json(lists / "Diving48_train.json", [{"vid_name": "-mX_s_00001", "label": 0}])
    result = from_diving48(lists, videos, root=videos)
    assert [(r.video_id, r.path, r.label, r.group, r.splits["split"]) for r in result.records] == [
        ("-mX_s_00002", "rgb/-mX_s_00002.mp4", "Back_15som_05Twis_FREE", "-mX_s", "test"),
        ("-mX_s_00001", "rgb/-mX_s_00001.mp4", "Back_15som_NoTwis_PIKE", "-mX_s", "train"),
    ]
    assert "ignored 1 list (Diving48_train.json) of version 1" in result.notes[0]
    write_json(lists / "Diving48_V2_test.json", [{"vid_name": "-mX_s_00002", "label": 7}])
    with pytest.raises(
        ManifestError, match=r"Diving48_V2_test\.json, item 1: label 7, but the vocabulary has 2 classes"
    ):
        from_diving48(lists, videos, root=videos)
