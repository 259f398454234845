"""Reading of single members of tar files, complete and damaged ones."""

from __future__ import annotations

import errno
import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from cmd_extract.errors import VideoError
from cmd_extract.sources.access import fingerprint, problem_of, read_archive, read_chunks, sizes, spool, tar_index
from cmd_extract.sources.limits import SourceLimits
from cmd_extract.sources.location import TarMember

LIMITS = SourceLimits()
FILES = {"a/one.mp4": b"1" * 700, "./b/two.mp4": b"22" * 300, "three.mp4": b""}


def write_tar(path: Path, files: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return path


def spooled(archive: Path, member: str, folder: Path, limits: SourceLimits = LIMITS) -> Path:
    return spool(TarMember(archive, member), folder, limits)


def read_member(source: TarMember, size: int) -> bytes:
    return b"".join(read_chunks(source, LIMITS))[:size]


def test_members_are_read_in_place(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "v.tar", FILES)
    for number, (name, data) in enumerate({"a/one.mp4": b"1" * 700, "b/two.mp4": b"22" * 300}.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = spooled(archive, name, folder)
        assert path == folder / "source.mp4"
        assert path.read_bytes() == data
        plain = tmp_path / "plain"
        plain.write_bytes(data)
        assert fingerprint(TarMember(archive, name)) == fingerprint(plain)
    assert sizes([TarMember(archive, n) for n in ("a/one.mp4", "three.mp4", "no.mp4")], LIMITS) == [700, 0, None]
    assert read_member(TarMember(archive, "a/one.mp4"), 3) == b"111"


def test_of_equal_names_the_last_counts_as_in_tar(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "v.tar", {"a.mp4": b"old"})
    with tarfile.open(archive, "a") as appended:
        info = tarfile.TarInfo("./a.mp4")
        info.size = 3
        appended.addfile(info, io.BytesIO(b"new"))
    assert read_member(TarMember(archive, "a.mp4"), 10) == b"new"


def test_the_start_of_chosen_members_is_kept(tmp_path: Path) -> None:
    files = {"a.mp4": bytes(100_000), "a.cls": b"old", "b.cls": b"\0" * 5000, "c.cls": b"", "d.mp4": b"end"}
    archive = write_tar(tmp_path / "v.tar", files)
    with tarfile.open(archive, "a") as appended:
        info = tarfile.TarInfo("a.cls")
        info.size = 3
        appended.addfile(info, io.BytesIO(b"new"))
    index = read_archive(archive, LIMITS, lambda name: name.endswith(".cls"))
    assert index.contents == {"a.cls": b"new", "b.cls": bytes(1024), "c.cls": b""}
    assert set(index.members) == set(files)
    assert index.problem == ""


def test_a_replaced_archive_is_read_again(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "v.tar", {"a.mp4": b"old"})
    assert "b.mp4" not in tar_index(archive).members
    os.utime(write_tar(archive, {"b.mp4": b"new"}), ns=(1, 1))
    assert read_member(TarMember(archive, "b.mp4"), 10) == b"new"


def test_long_and_non_utf8_names(tmp_path: Path) -> None:
    names = ["x/" * 150 + "v.mp4", "é ✓.mp4", os.fsdecode(b"\xff.mp4")]
    archive = write_tar(tmp_path / "v.tar", dict.fromkeys(names, b"data"))
    for name in names:
        assert read_member(TarMember(archive, name), 10) == b"data"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_not_followed(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("link.mp4")
    info.type, info.linkname = kind, "/etc/passwd"
    archive = write_tar(tmp_path / "v.tar", {"a.mp4": b"data"}, (info,))
    assert "link, device or sparse" in problem_of(TarMember(archive, "link.mp4"))
    with pytest.raises(VideoError, match="is a link"):
        spooled(archive, "link.mp4", tmp_path)


def test_names_outside_the_folder_are_refused_and_others_only_name_bytes(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "v.tar", {"../up.mp4": b"x", "/etc/passwd.mp4": b"y"})
    with pytest.raises(VideoError, match="outside the archive's folder"):
        spooled(archive, "../up.mp4", tmp_path)
    folder = tmp_path / "spool"
    folder.mkdir()
    assert spooled(archive, "/etc/passwd.mp4", folder).parent == folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spool", "v.tar"]


def test_suffixes_cannot_name_other_files(tmp_path: Path) -> None:
    for number, name in enumerate(("a.m p4", "a.é", "a." + "x" * 50, "noextension")):
        archive = write_tar(tmp_path / f"{number}.tar", {name: b"data"})
        folder = tmp_path / str(number)
        folder.mkdir()
        assert spooled(archive, name, folder) == folder / "source"


def test_missing_members_and_archives(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "v.tar", FILES)
    with pytest.raises(VideoError, match=r"open: the tar file has no member 'c\.mp4'$"):
        spooled(archive, "c.mp4", tmp_path)
    with pytest.raises(VideoError, match=r"open: cannot read .*no\.tar: No such file"):
        spooled(tmp_path / "no.tar", "c.mp4", tmp_path)
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(VideoError, match="not a regular file"):
        spooled(tmp_path / "pipe.tar", "c.mp4", tmp_path)


def test_a_truncated_archive_keeps_its_complete_members(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "v.tar", {"a.mp4": b"1" * 700, "b.mp4": b"2" * 700})
    data = archive.read_bytes()
    for length in (512 + 1024 + 512 + 100, 512 + 1024 + 200):  # within the data and the header of b.mp4
        archive.write_bytes(data[:length])
        assert tar_index(archive).problem
        assert len(read_member(TarMember(archive, "a.mp4"), 9999)) == 700
        with pytest.raises(VideoError, match=r"no member 'b\.mp4' before its damage"):
            read_member(TarMember(archive, "b.mp4"), 9999)
    archive.write_bytes(data[: 2 * 1536])
    assert "no end-of-archive marker" in tar_index(archive).problem


def test_a_damaged_header_is_not_taken_as_the_end(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "v.tar", {"a.mp4": b"1" * 512, "b.mp4": b"2" * 512})
    data = bytearray(archive.read_bytes())
    data[1024:1100] = b"\xff" * 76
    archive.write_bytes(data)
    assert tar_index(archive).problem == "no valid header at byte 1024"


def extended_header(size: int) -> bytes:
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf()


def test_huge_and_endless_headers_are_damage(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "v.tar", {"a.mp4": b"1" * 512})
    good = archive.read_bytes()[:1024]
    archive.write_bytes(good + extended_header(2 << 20) + b"x" * (2 << 20))
    assert tar_index(archive).problem == "damaged (header of 2097152 bytes)"
    archive.write_bytes(good + extended_header(0) * 5000)
    assert tar_index(archive).problem.startswith("damaged (maximum recursion depth")
    assert read_member(TarMember(archive, "a.mp4"), 3) == b"111"


def test_negative_sizes_are_damage(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "v.tar", {"a.mp4": b"1" * 512})
    good = archive.read_bytes()[:1024]
    back = tarfile.TarInfo("b.mp4")
    back.size = -1024
    archive.write_bytes(good + back.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert tar_index(archive).problem == "damaged (header of -1024 bytes of data at byte 1024)"
    assert read_member(TarMember(archive, "a.mp4"), 3) == b"111"


def test_an_input_or_output_error_is_an_error_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_tar(tmp_path / "v.tar", FILES)

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(VideoError, match=r"open: cannot read .*v\.tar: Input/output error"):
        spooled(archive, "three.mp4", tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a tar file" * 100])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "v.tar"
    path.write_bytes(content)
    with pytest.raises(VideoError, match="not a tar file, or damaged at its start"):
        tar_index(path)


def test_compressed_archives_are_refused_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "v.tar.gz"
    path.write_bytes(gzip.compress(write_tar(tmp_path / "v.tar", FILES).read_bytes()))
    with pytest.raises(VideoError, match=r"compressed \(gzip\).*decompress it first"):
        spooled(path, "a/one.mp4", tmp_path)


def test_members_larger_than_the_limit_are_not_copied(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "v.tar", {"a.mp4": bytes((1 << 20) + 1)})
    with pytest.raises(VideoError, match=r"has 1048577 bytes, more than the 1 MiB of --max-source-mb"):
        spooled(archive, "a.mp4", tmp_path, SourceLimits(max_mb=1))
    assert list(tmp_path.iterdir()) == [archive]
