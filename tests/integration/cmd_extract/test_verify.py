"""``verify``, ``inspect`` and ``preview``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from cmd_extract import schema
from tests.indexes import update_index
from tests.integration.cmd_extract.extraction import SIZE, MakeVideo, call, contents


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    folder = tmp_path_factory.mktemp("original")
    for name in "abc":
        make_video(folder / f"{name}.mp4", "-c:v", "libx264", source="mandelbrot", frames=26)
    (folder / "bad.mp4").write_text("not a video")
    rows = [f"{n},{n}.mp4,class {n},train" for n in ("a", "bad", "b", "c")]
    (folder / "m.csv").write_text("\n".join(["id,path,label,split", *rows]) + "\n")
    assert call("run", folder / "m.csv", folder / "out", "--videos-per-shard", 2, "--workers", 1, *SIZE)[0] == 3
    return folder


def test_an_intact_extraction_has_no_problems(folder: Path) -> None:
    code, output = call("verify", folder / "out")
    assert code == 0, output
    assert "no problems found" in output


def break_jpeg(file: h5py.File) -> None:
    start = int(file[schema.FRAME_OFFSET][3])
    file[schema.FRAME_JPEG][start + 30 : start + 300] = 0xFF


def break_keyframe_size(file: h5py.File) -> None:
    file.attrs[schema.ATTR_CANONICAL_SIZE] = np.array([158, 118], np.int32)


def break_offset(file: h5py.File) -> None:
    file[schema.FRAME_OFFSET][2] = file[schema.FRAME_OFFSET][4]


def break_count(file: h5py.File) -> None:
    file[schema.VIDEO_FRAME_COUNT][0] -= 1


def break_keyframe(file: h5py.File) -> None:
    file[schema.KEYFRAME_INDEX][1] += 1


def break_grid(file: h5py.File) -> None:
    file[schema.MOTION_GRID][0, 0, 0, 0] = 7


def break_row(file: h5py.File) -> None:
    file[schema.VIDEO_ROW][0] = 9


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_jpeg, "frame 3: damaged JPEG"), (break_keyframe_size, "keyframe 0: 160x120 pixels, expected 158x118"),
        (break_offset, "frame/offset does not match"), (break_count, "video/first_frame does not match"),
        (break_keyframe, "the keyframes are not the I-frames"), (break_grid, "motion in invalid cells"),
        (break_row, "do not cover exactly the manifest rows 2 to 3"),
    ],
)  # fmt: skip
def test_damage_with_a_matching_checksum_is_reported(
    folder: Path, damage: Callable[[h5py.File], None], message: str
) -> None:
    out = folder / "out"
    with h5py.File(out / "shard-00001.h5", "r+") as file:
        damage(file)
    update_index(out)  # so that only the content reveals the damage
    code, output = call("verify", out)
    assert code == 1
    assert message in output, output
    assert "shard-00000" not in output


def test_workers_and_tasks_find_the_same_problems(folder: Path) -> None:
    out = folder / "out"
    for number in (0, 1):
        with h5py.File(out / f"shard-0000{number}.h5", "r+") as file:
            break_jpeg(file)
    lists = []
    for workers in (1, 2):
        code, output = call("verify", out, "--workers", workers)
        assert code == 1
        lists.append([line for line in output.splitlines() if line.startswith("shard-")])
    problems, found = lists[0], []
    assert len(problems) == 4
    assert lists[1] == problems
    for task in (1, 0):
        code, output = call("verify", out, "--task", task, "--num-tasks", 2)
        assert code == 1
        found += [line for line in output.splitlines() if line.startswith("shard-")]
        assert f"shard-0000{1 - task}" not in output
    assert sorted(found) == sorted(problems)
    code, output = call("verify", out, "--task", 2, "--num-tasks", 3)
    assert code == 0, "there are fewer shards"
    assert "no problems found by task 2 of 3" in output


def test_the_tables_are_checked_by_the_first_task(folder: Path) -> None:
    (folder / "out" / "failures.csv").write_text("row,path,stage,reason\n")
    codes = [call("verify", folder / "out", "--task", task, "--num-tasks", 2)[0] for task in (0, 1)]
    assert codes == [1, 0]
    for options in (("--task", 0), ("--num-tasks", 2), ("--task", 2, "--num-tasks", 2)):
        assert call("verify", folder / "out", *options)[0] == 2
    assert call("verify", folder / "out", "--repair", "--task", 0, "--num-tasks", 2)[0] == 2


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "source", "failures"])
def test_repair_rebuilds_exactly_the_damaged_shards(
    folder: Path, original: Path, make_video: MakeVideo, damage: str
) -> None:
    out = folder / "out"
    shard = out / "shard-00001.h5"
    data = bytearray(shard.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
        later = time.time() + 86_400
        os.utime(shard, (later, later))  # as if written by a host whose clock is ahead
    elif damage == "truncated":
        shard.write_bytes(data[: len(data) // 2])
    elif damage == "missing":
        shard.unlink()
    elif damage == "source":
        make_video(folder / "c.mp4", "-c:v", "libx264", source="testsrc2", frames=26)
    else:
        (out / "failures.csv").write_text("row,path,stage,reason\n")
    code, output = call("verify", out)
    assert code == 1
    assert {"source": "c.mp4 has changed", "failures": "failures.csv"}.get(damage, "shard-00001.h5") in output
    # Extracting again helps shards only.
    assert ("--repair extracts the affected shards again" in output) == (damage != "failures")
    if damage == "missing":
        assert "\nshard-00001.h5: missing\n" in output
        assert f"{out}: 1 problem;" in output
    untouched = (out / "shard-00000.h5").stat().st_mtime_ns
    code, output = call("verify", out, "--repair", "--workers", 1)
    assert code == 0, output
    assert (out / "shard-00000.h5").stat().st_mtime_ns == untouched
    if damage == "source":
        assert contents(out)["shard-00001.h5"] != contents(original / "out")["shard-00001.h5"]
    else:
        assert contents(out) == contents(original / "out")


def test_repair_keeps_shards_whose_sources_cannot_be_extracted_again(folder: Path, make_video: MakeVideo) -> None:
    out, before = folder / "out", contents(folder / "out")
    make_video(folder / "c.mp4", "-c:v", "libx264", source="testsrc2", frames=26)  # changed
    (folder / "b.mp4").unlink()
    code, output = call("verify", out, "--repair", "--workers", 1)
    assert code == 1, output
    assert "shard-00001.h5: kept, because it has the video 'b'" in output
    assert contents(out) == before
    (out / "shard-00001.h5").unlink()
    assert call("verify", out, "--repair", "--workers", 1)[0] == 0
    assert "b.mp4,open" in (out / "failures.csv").read_text("utf-8")


def test_repair_obeys_the_timeout(folder: Path) -> None:
    (folder / "out" / "shard-00001.h5").unlink()
    code, output = call("verify", folder / "out", "--repair", "--workers", 1, "--timeout", 0.001)
    assert code == 0, output
    reasons = (folder / "out" / "failures.csv").read_text("utf-8")
    assert "timeout,not finished after 0.001 s (--timeout)" in reasons


def test_repair_rejects_a_changed_manifest(folder: Path) -> None:
    (folder / "m.csv").write_text((folder / "m.csv").read_text().replace("class a", "class x"))
    code, output = call("verify", folder / "out", "--repair")
    assert code == 1
    assert "has changed since" in output
    assert "(labels, groups or splits); run `cmd-extract relabel" in output
    (folder / "m.csv").write_text((folder / "m.csv").read_text().replace("class x", "class a"))
    assert call("verify", folder / "out", "--repair")[0] == 0
    assert call("verify", folder / "out", "--no-sources")[0] == 0


def test_inspect_shows_totals(folder: Path) -> None:
    code, output = call("inspect", folder / "out")
    assert code == 0
    for text in ("3, 1 failures, 2 shards", "78; per video 26 to 26", "h264 3", "160x120 3", "20x15 cells of 8 pixels"):
        assert text in output


def test_preview_shows_frame_and_motion(folder: Path, tmp_path: Path) -> None:
    code, output = call("preview", folder / "out", "--video", "b", "--output", tmp_path / "p.png")
    assert code == 0, output
    picture = np.asarray(Image.open(tmp_path / "p.png")).astype(int)
    assert picture.shape == (4 * (120 + 18), 4 * 164, 3)
    keyframe, frame, colors, mask = (picture[14:134, 164 * i : 164 * i + 160] for i in range(4))
    assert np.abs(keyframe - frame).mean() < 40, "both show the same video"
    assert set(np.unique(mask)) <= {0, 255}
    assert mask.any()
    assert colors.std() > 5
    assert call("preview", folder / "out", "--video", "b", "--output", tmp_path / "p.gif", "--frames", 6)[0] == 0
    assert getattr(Image.open(tmp_path / "p.gif"), "n_frames", 1) == 6
    assert call("preview", folder / "out", "--video", "zzz")[0] == 2
