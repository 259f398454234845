"""Extraction of videos in tar files: the same shards as from local files, failures as rows, changed archives."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import h5py
import pytest

from cmd_extract.shard.reader import ShardSet
from tests.integration.cmd_extract.extraction import SMALL, MakeVideo, call, read_rows


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(("run/a", "run/b", "walk/c")):
        make_video(folder / f"{name}.mp4", "-c:v", "libx264", source="testsrc2" if number else "smptebars", frames=8)
    return folder


def pack(videos: Path, archive: Path, *names: str) -> Path:
    with tarfile.open(archive, "w") as tar:
        for name in names or ("run/a.mp4", "run/b.mp4", "walk/c.mp4"):
            tar.add(videos / name, name)
    return archive


def columns(out: Path) -> list[tuple[str, bytes]]:
    """All data of all shards, except the manifest's paths."""
    found: list[tuple[str, bytes]] = []
    for path in sorted(out.glob("shard-*.h5")):
        with h5py.File(path, "r", locking=False) as file:
            file.visititems(
                lambda name, item: found.append((name, item[()].tobytes())) if isinstance(item, h5py.Dataset) else None
            )
    return found


def test_videos_of_a_tar_file_give_the_same_shards(videos: Path, tmp_path: Path) -> None:
    archive = pack(videos, tmp_path / "v.tar")
    assert call("manifest", archive, tmp_path / "tar.csv").exit_code == 0
    assert call("manifest", videos, tmp_path / "plain.csv", "--root", videos).exit_code == 0
    tar, plain = read_rows(tmp_path / "tar.csv"), read_rows(tmp_path / "plain.csv")
    assert [row["path"] for row in tar] == ["v.tar::run/a.mp4", "v.tar::run/b.mp4", "v.tar::walk/c.mp4"]
    assert [(r["id"], r["label"]) for r in tar] == [(r["id"], r["label"]) for r in plain]
    for name, root in (("tar", tmp_path), ("plain", videos)):
        result = call("run", tmp_path / f"{name}.csv", tmp_path / name, "--root", root, *SMALL)
        assert result.exit_code == 0, result.output
    assert columns(tmp_path / "tar") == columns(tmp_path / "plain")
    assert call("verify", tmp_path / "tar").exit_code == 0
    assert not list(tmp_path.rglob("source*"))


def test_a_folder_of_tar_files_with_classes_as_in_webdataset(videos: Path, tmp_path: Path) -> None:
    for number in range(2):
        with tarfile.open(tmp_path / f"train-{number}.tar", "w") as tar:
            tar.add(videos / "run/a.mp4", "0001.mp4")
            label = tmp_path / "label"
            label.write_text(f"{number}\n")
            tar.add(label, "0001.cls")
            tar.add(label, "0001.json")
    result = call("manifest", tmp_path, tmp_path / "m.csv")
    assert result.exit_code == 0, result.output
    assert "ignored 2 members without a video extension" in result.output
    assert [(r["id"], r["path"], r["label"]) for r in read_rows(tmp_path / "m.csv")] == [
        (f"train-{n}/0001", f"train-{n}.tar::0001.mp4", str(n)) for n in range(2)
    ]


def test_unreadable_members_fail_in_stage_open(videos: Path, tmp_path: Path) -> None:
    pack(videos, tmp_path / "v.tar")
    whole = pack(videos, tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:-12000])
    (tmp_path / "gz.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    paths = {
        "good": "v.tar::run/a.mp4",
        "missing": "v.tar::run/z.mp4",
        "cut": "cut.tar::walk/c.mp4",
        "packed": "gz.tar::a.mp4",
        "gone": "gone.tar::a.mp4",
        "outside": "v.tar::../v.tar",
    }
    lines = [f"{name},{path}" for name, path in paths.items()]
    (tmp_path / "m.csv").write_text("\n".join(["id,path", *lines]) + "\n")
    dry = call("run", tmp_path / "m.csv", tmp_path / "out", *SMALL, "--dry-run")
    assert "missing   5 files" in dry.output, dry.output
    result = call("run", tmp_path / "m.csv", tmp_path / "out", *SMALL)
    assert result.exit_code == 3, result.output
    failed = read_rows(tmp_path / "out" / "failures.csv")
    assert {row["stage"] for row in failed} == {"open"}
    expected = {
        "missing": "no member 'run/z.mp4'",
        "cut": "before its damage: truncated",
        "packed": "compressed (gzip)",
        "gone": "No such file",
        "outside": "no member '../v.tar'",
    }
    assert [row["path"] for row in failed] == [paths[name] for name in expected]
    assert all(text in row["reason"] for row, text in zip(failed, expected.values(), strict=True)), failed
    assert [video.video_id for video in ShardSet(tmp_path / "out").videos] == ["good"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x1f\x8b" + bytes(600), "decompress it first"), (bytes(range(256)) * 4, "not a tar file")],
)
def test_unusable_archives_give_no_manifest(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "v.tar").write_bytes(content)
    result = call("manifest", tmp_path / "v.tar", tmp_path / "m.csv")
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "m.csv").exists()


def test_an_archive_with_another_name_is_refused(videos: Path, tmp_path: Path) -> None:
    pack(videos, tmp_path / "videos.data")
    result = call("manifest", tmp_path / "videos.data", tmp_path / "m.csv", "--format", "tar")
    assert result.exit_code == 1
    assert "videos.data: the path or URL of a tar file must end in .tar; rename or copy it" in result.output


def test_missing_members_in_a_list_are_reported_with_the_reason(videos: Path, tmp_path: Path) -> None:
    pack(videos, tmp_path / "v.tar")
    (tmp_path / "list.csv").write_text("path\nv.tar::run/a.mp4\nv.tar::run/z.mp4\n")
    result = call("manifest", tmp_path / "list.csv", tmp_path / "m.csv")
    assert result.exit_code == 1
    assert "line 3" in result.output
    assert "no member 'run/z.mp4'" in result.output


def test_changed_members_are_noticed(videos: Path, tmp_path: Path) -> None:
    archive = pack(videos, tmp_path / "v.tar")
    assert call("manifest", archive, tmp_path / "m.csv").exit_code == 0
    command = ("run", tmp_path / "m.csv", tmp_path / "out", *SMALL)
    assert call(*command).exit_code == 0
    assert call(*command).exit_code == 0
    (tmp_path / "other").mkdir()
    changed = tmp_path / "other" / "run" / "b.mp4"
    changed.parent.mkdir()
    changed.write_bytes((videos / "run/b.mp4").read_bytes() + b"tail")
    with tarfile.open(archive, "w") as tar:
        tar.add(videos / "run/a.mp4", "run/a.mp4")
        tar.add(changed, "run/b.mp4")
    result = call(*command)
    assert result.exit_code == 1
    assert "v.tar::run/b.mp4: " in result.output
    assert "1 file (" in result.output
    assert "has changed since it was extracted" in call("verify", tmp_path / "out").output
    archive.unlink()  # deleted sources are not an error
    assert call(*command).exit_code == 0


def test_verify_names_damaged_archives_but_not_deleted_members(videos: Path, tmp_path: Path) -> None:
    archive = pack(videos, tmp_path / "v.tar")
    whole = archive.read_bytes()
    assert call("manifest", archive, tmp_path / "m.csv").exit_code == 0
    assert call("run", tmp_path / "m.csv", tmp_path / "out", *SMALL).exit_code == 0
    damaged = {
        "has no member 'walk/c.mp4' before its damage: truncated in member 'walk/c.mp4'": whole[:-12000],
        "the tar file is compressed (gzip)": gzip.compress(whole),
        "not a tar file, or damaged at its start": bytes(range(256)) * 40,
    }
    for reason, data in damaged.items():
        archive.write_bytes(data)
        result = call("verify", tmp_path / "out")
        assert result.exit_code == 1, result.output
        assert f"source {archive}::walk/c.mp4 cannot be read (open: " in result.output
        assert reason in result.output
        assert result.output.count("cannot be read") == (1 if "before" in reason else 3), result.output
        assert "--repair" not in result.output
    pack(videos, archive, "run/a.mp4", "run/b.mp4")  # a complete archive without the last member
    assert call("verify", tmp_path / "out").exit_code == 0
    archive.unlink()
    assert call("verify", tmp_path / "out").exit_code == 0
