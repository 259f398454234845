"""Labels, groups and splits change without extracting again; rows, ids and paths do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cmd_eval.cli.main import main as eval_main
from cmd_extract.errors import ShardError
from cmd_extract.schema import is_relabeled
from cmd_extract.shard.index import ShardIndex
from cmd_extract.shard.reader import ShardSet
from tests.command_line import outcome
from tests.integration.cmd_extract.extraction import SIZE, X264, MakeVideo, call, contents

BEFORE = "id,path,label,group,split1\na,a.mp4,run,g1,train\nlost,lost.mp4,run,,test\nb,b.mp4,,g2,train\n"
AFTER = "path,id,label,group,split2\na.mp4,a,walk,g1,\nlost.mp4,lost,run,,test\nb.mp4,b,Größe,g2,val\n"
OPTIONS = ("--workers", 1, "--videos-per-shard", 2, *SIZE)


@pytest.fixture
def out(make_video: MakeVideo, tmp_path: Path) -> Path:
    """A finished extraction with one failure; its manifest ``m.csv`` is in the parent folder."""
    for name in "ab":
        make_video(tmp_path / f"{name}.mp4", *X264, frames=5)
    (tmp_path / "m.csv").write_text(BEFORE)
    assert call("run", tmp_path / "m.csv", tmp_path / "out", *OPTIONS)[0] == 3
    return tmp_path / "out"


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob("shard-*.h5")}


def labels(out: Path) -> list[tuple[str, str, str, dict[str, str]]]:
    return [(v.video_id, v.label, v.group, dict(v.splits)) for v in ShardSet(out).videos]


def test_relabeling_equals_an_extraction_of_the_new_manifest(out: Path, tmp_path: Path) -> None:
    data_hash, before, index = ShardSet(out).data_hash, stamps(out), ShardIndex(out)
    index.check_in_place()
    assert labels(out) == [("a", "run", "g1", {"split1": "train"}), ("b", "", "g2", {"split1": "train"})]
    new = tmp_path / "new.csv"
    new.write_text(AFTER)
    code, output = call("relabel", out, new)
    assert code == 0, output
    assert output.splitlines()[0] == f"{out}: label: 2 of 3 values changed; split2: added; split1: removed"
    assert "Compute features again" in output
    assert stamps(out) == before
    assert labels(out) == [("a", "walk", "g1", {"split2": ""}), ("b", "Größe", "g2", {"split2": "val"})]
    after = ShardSet(out).data_hash
    assert after != data_hash, "features and checkpoints of other splits must not be mistaken for new"
    assert is_relabeled(data_hash, after), "but their shards are known to be the same"
    with pytest.raises(ShardError, match=r"another process has just changed index\.json"):
        index.check_in_place()
    assert call("verify", out)[0] == 0, "run.json names the new manifest"
    assert call("run", new, tmp_path / "fresh", *OPTIONS)[0] == 3
    assert contents(out) == contents(tmp_path / "fresh")
    assert call("relabel", out, new)[1] == f"{out}: labels, groups and splits are already those of the manifest\n"


def test_a_run_after_an_edit_of_the_splits_extracts_nothing(out: Path, tmp_path: Path) -> None:
    before = stamps(out)
    (tmp_path / "m.csv").write_text(BEFORE.replace("b,b.mp4,,g2,train", "b,b.mp4,,g2,test"))
    code, output = call("verify", out)
    assert code == 1
    assert "labels, groups or splits are not those of the manifest; `cmd-extract relabel" in output
    code, output = call("run", tmp_path / "m.csv", out, *OPTIONS)
    assert code == 3, output
    assert "(0 in this run)" in output
    assert f"note: the labels, groups and splits in {out} are now those of {tmp_path / 'm.csv'}\n" in output
    assert stamps(out) == before
    assert labels(out)[1] == ("b", "", "g2", {"split1": "test"})
    (tmp_path / "m.csv").write_text("".join(f"{line.rpartition(',')[0]}\n" for line in BEFORE.splitlines()))
    assert "split columns removed: split1" in call("run", tmp_path / "m.csv", out, *OPTIONS)[1]
    assert "note:" not in call("run", tmp_path / "m.csv", out, *OPTIONS)[1]
    assert call("verify", out)[0] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BEFORE.replace("lost,lost.mp4,run,,test\n", ""), "has 2 rows, but {out} was extracted from 3"),
        (BEFORE.replace("\nb,", "\nc,"), "row 2 (counted from 0) has the id 'c', extracted was 'b'"),
        (BEFORE.replace("\nlost,", "\nfound,"), "row 1 (counted from 0) has the id 'found', extracted was 'lost'"),
        (BEFORE.replace("a.mp4", "z.mp4"), "the paths are not, for example 'z.mp4'"),
        (BEFORE.replace("g1,train", "g1,dev"), "column 'split1': 'dev' is not a split part"),
    ],
)
def test_other_rows_are_rejected(out: Path, tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "new.csv").write_text(text)
    before, record = contents(out), (out / "run.json").read_bytes()
    code, output = call("relabel", out, tmp_path / "new.csv")
    assert code == 1
    assert expected.format(out=out) in output
    assert output.count("\n") == 1
    assert (contents(out), (out / "run.json").read_bytes()) == (before, record)


def test_an_unfinished_or_damaged_extraction_is_rejected(out: Path, tmp_path: Path) -> None:
    index = (out / "index.json").read_bytes()
    for name, expected in (("index.json", "no index.json found"), ("shard-00001.h5", "missing, or its size")):
        content = (out / name).read_bytes()
        (out / name).unlink()
        code, output = call("relabel", out, tmp_path / "m.csv")
        assert (code, expected in output) == (1, True), output
        (out / name).write_bytes(content)
    os.truncate(out / "shard-00001.h5", 100)
    assert "its size does not match index.json" in call("relabel", out, tmp_path / "m.csv")[1]
    assert (out / "index.json").read_bytes() == index


def test_a_failed_write_changes_nothing(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new.csv").write_text(AFTER)
    before, record = contents(out), (out / "run.json").read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert call("relabel", out, tmp_path / "new.csv")[0] == 1
    assert (contents(out), (out / "run.json").read_bytes()) == (before, record)


def test_segments_share_the_columns_of_their_row(make_video: MakeVideo, tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", *X264, frames=26)
    manifest, out = tmp_path / "m.csv", tmp_path / "out"
    manifest.write_text("id,path,label\na#1,a.mp4,x\n")
    assert call("run", manifest, out, "--workers", 1, "--segment-seconds", "0.4", *SIZE)[0] == 0
    manifest.write_text("id,path,label\na#1,a.mp4,y\n")
    assert call("relabel", out, manifest)[0] == 0
    assert [(i, label) for i, label, *_ in labels(out)] == [("a#1#0000", "y"), ("a#1#0001", "y"), ("a#1#0002", "y")]
    manifest.write_text("id,path,label\na,a.mp4,y\n")
    assert "row 0 (counted from 0) has the id 'a', extracted was 'a#1'" in call("relabel", out, manifest)[1]


@pytest.mark.parametrize("damage", ["missing", "shorter", "other", "changed"])
def test_a_damaged_table_is_named_and_rebuilt(out: Path, tmp_path: Path, damage: str) -> None:
    before = contents(out)
    (table,) = out.glob("index-*.h5")
    data = bytearray(table.read_bytes())
    if damage == "missing":
        table.unlink()
    elif damage == "shorter":
        table.write_bytes(data[:-1])
    elif damage == "other":
        table.write_bytes(bytes(len(data)))
    else:
        data[-1] ^= 1
        table.write_bytes(data)
    for command in (("verify", out), ("relabel", out, tmp_path / "m.csv")):
        code, output = call(*command)
        assert code == 1
        assert f"{table}: " in output
        assert f"run `cmd-extract merge {out}` to rebuild it" in output
    if damage != "changed":  # looking at all of a large table would take too long
        assert f"{table}: " in call("inspect", out)[1]
    assert call("merge", out, "--allow-failures")[0] == 0
    assert contents(out) == before
    assert call("verify", out)[0] == 0


def test_one_file_in_both_parts_can_be_evaluated(make_video: MakeVideo, tmp_path: Path) -> None:
    for name, source in (("a", "testsrc2"), ("b", "mandelbrot"), ("c", "smptebars")):
        make_video(tmp_path / f"{name}.mp4", *X264, source=source, frames=5)
    rows = "a,a.mp4,x,train\ncopy,a.mp4,x,test\nb,b.mp4,y,train\nc,c.mp4,y,test\n"
    (tmp_path / "m.csv").write_text(f"id,path,label,split\n{rows}")
    assert call("run", tmp_path / "m.csv", tmp_path / "out", "--workers", 1, *SIZE)[0] == 0
    baseline = (eval_main, "baseline", tmp_path / "out")
    code, output = outcome(*baseline)
    assert code == 1
    assert "query copy and gallery video a are the same file" in output
    code, output = outcome(*baseline, "--skip-copies")
    assert code == 0, output
    assert "split: 1 queries were left out as copies of files in part 'train'" in output
    (tmp_path / "m.csv").write_text(f"id,path,label,split\n{rows.replace('x,test', 'x,')}")
    assert call("relabel", tmp_path / "out", tmp_path / "m.csv")[0] == 0
    assert outcome(*baseline).exit_code == 0
