from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from cmd_extract import schema
from cmd_extract.cli.main import main
from cmd_extract.decode.source import fingerprint
from tests.command_line import call as run_command

MakeVideo = Callable[..., Path]


def call(*arguments: object) -> tuple[int, str]:
    result = run_command(main, *arguments)
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    folder = tmp_path_factory.mktemp("original")
    for name in "abc":
        make_video(folder / f"{name}.mp4", "-c:v", "libx264", source="mandelbrot", frames=26)
    (folder / "bad.mp4").write_text("no video")
    rows = [f"{n},{n}.mp4,class {n},train" for n in ("a", "bad", "b", "c")]
    (folder / "m.csv").write_text("\n".join(["id,path,label,split", *rows]) + "\n")
    size = ("--size", "160x120", "--frame-short-side", "48")
    assert call("run", folder / "m.csv", folder / "out", "--videos-per-shard", 2, "--workers", 1, *size)[0] == 3
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "copy")
    record = tmp_path / "copy" / "out" / "run.json"
    record.write_text(record.read_text().replace(str(original), str(tmp_path / "copy")))
    return tmp_path / "copy"


def reseal(out: Path, number: int) -> None:
    """Makes the index agree with a shard's bytes, so that only its contents can give the damage away."""
    index = json.loads((out / "index.json").read_text())
    path = out / index["shards"][number]["name"]
    before = index["shards"][number]["size_bytes"]
    index["shards"][number] |= {"sha256": fingerprint(path), "size_bytes": path.stat().st_size}
    index["totals"]["size_bytes"] += path.stat().st_size - before
    (out / "index.json").write_text(json.dumps(index))


def contents(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.name != "run.json"}


def test_a_whole_extraction_is_well(folder: Path) -> None:
    code, said = call("verify", folder / "out")
    assert code == 0, said
    assert "all well" in said


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
        (break_jpeg, "frame 3: a damaged JPEG"), (break_keyframe_size, "keyframe 0: 160x120 pixels, not 158x118"),
        (break_offset, "frame/offset does not divide"), (break_count, "first frames do not follow|the videos have"),
        (break_keyframe, "keyframes are not the I-frames"), (break_grid, "motion in invalid cells"),
        (break_row, "are not the manifest rows"),
    ],
)  # fmt: skip
def test_damage_that_checksums_do_not_show_is_named(
    folder: Path, damage: Callable[[h5py.File], None], message: str
) -> None:
    out = folder / "out"
    with h5py.File(out / "shard-00001.h5", "r+") as file:
        damage(file)
    reseal(out, 1)
    code, said = call("verify", out)
    assert code == 1
    assert any(part in said for part in message.split("|")), said
    assert "shard-00000" not in said


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing", "source", "failures"])
def test_repair_makes_exactly_the_damaged_again(folder: Path, original: Path, make_video: MakeVideo, how: str) -> None:
    out = folder / "out"
    shard = out / "shard-00001.h5"
    data = bytearray(shard.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif how == "truncated":
        shard.write_bytes(data[: len(data) // 2])
    elif how == "missing":
        shard.unlink()
    elif how == "source":
        make_video(folder / "c.mp4", "-c:v", "libx264", source="testsrc2", frames=26)
    else:
        (out / "failures.csv").write_text("row,path,stage,reason\n")
    code, said = call("verify", out)
    assert code == 1
    assert {"source": "c.mp4 has changed", "failures": "failures.csv"}.get(how, "shard-00001.h5") in said
    untouched = (out / "shard-00000.h5").stat().st_mtime_ns
    code, said = call("verify", out, "--repair", "--workers", 1)
    assert code == 0, said
    assert (out / "shard-00000.h5").stat().st_mtime_ns == untouched
    if how == "source":
        assert contents(out)["shard-00001.h5"] != contents(original / "out")["shard-00001.h5"]
    else:
        assert contents(out) == contents(original / "out")


def test_repair_gives_a_video_the_time_it_is_told(folder: Path) -> None:
    (folder / "out" / "shard-00001.h5").unlink()
    code, said = call("verify", folder / "out", "--repair", "--workers", 1, "--timeout", 0.001)
    assert code == 0, said
    reasons = (folder / "out" / "failures.csv").read_text("utf-8")
    assert "timeout,not done after 0.001 s (--timeout)" in reasons


def test_a_manifest_that_changed_is_no_basis_for_repair(folder: Path) -> None:
    (folder / "m.csv").write_text((folder / "m.csv").read_text().replace("class a", "class x"))
    code, said = call("verify", folder / "out", "--repair")
    assert code == 1
    assert "is not what it was" in said
    assert call("verify", folder / "out", "--no-sources")[0] == 0


def test_inspect_tells_the_totals(folder: Path) -> None:
    code, said = call("inspect", folder / "out")
    assert code == 0
    for text in ("3, 1 failures, 2 shards", "78; a video 26 to 26", "h264 3", "160x120 3", "20x15 cells of 8 pixels"):
        assert text in said


def test_preview_shows_what_moves_where(folder: Path, tmp_path: Path) -> None:
    code, said = call("preview", folder / "out", "--video", "b", "--to", tmp_path / "p.png")
    assert code == 0, said
    picture = np.asarray(Image.open(tmp_path / "p.png")).astype(int)
    assert picture.shape == (4 * (120 + 18), 4 * 164, 3)
    keyframe, frame, colours, mask = (picture[14:134, 164 * i : 164 * i + 160] for i in range(4))
    assert np.abs(keyframe - frame).mean() < 40, "both show the video"
    assert set(np.unique(mask)) <= {0, 255}
    assert mask.any()
    assert colours.std() > 5
    assert call("preview", folder / "out", "--video", "b", "--to", tmp_path / "p.gif", "--frames", 6)[0] == 0
    assert getattr(Image.open(tmp_path / "p.gif"), "n_frames", 1) == 6
    assert call("preview", folder / "out", "--video", "zzz")[0] == 2
