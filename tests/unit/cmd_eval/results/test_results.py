from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cmd_eval.data.splits import EvalSplitSpec
from cmd_eval.experiments.decoupling import DecouplingSpec
from cmd_eval.features.source import name_suffixes
from cmd_eval.results.files import TYPES, format_json, read_result, write_result
from cmd_eval.results.schema import Provenance, mean_and_spread, result_name, result_record
from cmd_eval.tasks.recognition import recognition_file_name
from tests.unit.cmd_eval.report import result_files as results

SOURCE = Provenance(command="cmd-eval test", shards="shards", data_hash="abc", features="backbone, pooled", seed=3)


def test_result_round_trip_keeps_the_provenance(tmp_path: Path) -> None:
    path = tmp_path / "run" / "eval" / "probe.json"
    fields = results.probe()
    source = replace(SOURCE, pretext={"context_top1": float("nan"), "motion_top1": 0.5})
    write_result(path, fields | result_record("probe", source))
    record = read_result(path, "probe")
    assert record["format"] == 1
    assert record["splits"] == fields["splits"]
    assert record["provenance"]["pretext"] == {"motion_top1": 0.5}
    recorded = "command created versions shards data_hash checkpoint checkpoint_sha256 trained_on step untrained"
    assert set(recorded.split()) < set(record["provenance"])
    assert {"context-motion-decoupling", "torch", "numpy", "python"} <= set(record["provenance"]["versions"])
    assert list(path.parent.iterdir()) == [path]


def test_file_names_of_results() -> None:
    assert result_name("retrieval", "split1", "", "label") == "retrieval-split1-label.json"
    assert result_name("probe", "a/b ../c") == "probe-a_b_.._c.json"
    source = replace(SOURCE, checkpoint="gone/checkpoints/step-00000009", clips=10)
    assert name_suffixes(source) == []
    assert name_suffixes(replace(source, untrained=True, clips=3)) == ["untrained", "3-clips"]
    assert name_suffixes(replace(SOURCE, features="motion descriptor", clips=1)) == ["motion-descriptor"]
    scaled = replace(SOURCE, features="motion descriptor", clips=1, standardized=True)
    assert name_suffixes(scaled) == ["motion-descriptor", "standardized"]
    assert EvalSplitSpec(split_columns=("split1",), test_part="val").name == "split1-val-in-train-label"
    assert EvalSplitSpec(leave_one_out=True, targets=("group",)).name == "leave-one-out-group"
    assert DecouplingSpec(split_columns=("split1",)).name == "split1"
    assert DecouplingSpec(split_columns=("a", "b"), test_part="val").name == "a-b-val-in-train"
    assert recognition_file_name("split2", "val", ["3-clips"]) == "recognition-split2-val-3-clips.json"


def test_other_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_result(path, results.probe())
    with pytest.raises(ValueError, match="is a probe result, expected retrieval"):
        read_result(path, "retrieval")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    with pytest.raises(ValueError, match="format version 9"):
        read_result(path)
    for text in ("[]", "{", '{"kind": "probe"}', '{"kind": "poll", "provenance": {}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="not a result"):
            read_result(path)


EVERY_KIND = [
    results.retrieval,
    results.probe,
    results.recognition,
    results.auxiliary,
    results.decoupling,
    results.evidence,
]


@pytest.mark.parametrize("make", EVERY_KIND)
def test_every_field_is_required_or_has_a_default(make: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_result(path, make())
    assert read_result(path) == make()
    for name in set(make()) - {"kind", "provenance", "format"}:
        record = make()
        del record[name]
        with pytest.raises(ValueError, match=rf"r.json: not written: incomplete or invalid .*`{name}`"):
            write_result(path, record)
        path.write_text(json.dumps(record))
        with pytest.raises(ValueError, match=rf"r.json: incomplete or invalid .*`{name}`"):
            read_result(path)
        with pytest.raises(ValueError, match="unknown field `moon`"):
            write_result(path, make() | {"moon": "full"})


def test_every_kind_has_an_example() -> None:
    assert [make()["kind"] for make in EVERY_KIND] == list(TYPES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["videos"].pop(), r"videos: 19 entries for 20 test videos - at `\$.splits\[0\]`"),
        (
            lambda s: s["videos"][3].pop("predicted"),
            r"missing required field `predicted` - at `.*\[0\].videos\[3\]",
        ),
        (lambda s: s["top1"].update(low=0.9), r"value: 0.6 is not between low = 0.9 .* at `\$.splits\[0\].top1`"),
        (lambda s: s["top5"].update(value=1.2, high=1.2), r"<= 1.* at `\$.splits\[0\].top5"),
        (lambda s: s["confusion"][1].pop(), r"confusion: a row: 2 entries for 3 classes"),
        (lambda s: s.update(target="color"), r"Invalid enum value 'color' - at `\$.splits\[0\].target`"),
    ],
)
def test_the_invalid_field_is_named(change: Callable[[Any], object], message: str, tmp_path: Path) -> None:
    record = results.probe()
    change(record["splits"][0])
    path = tmp_path / "r.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        read_result(path)


def test_matrices_have_one_line_per_row(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_result(path, results.probe())
    lines = path.read_text().splitlines()
    assert [line.strip(" ,") for line in lines if line.strip(" ,") in ("[5, 2, 0]", "[1, 6, 0]", "[0, 0, 6]")]
    assert sum(line.lstrip().startswith('{"video": ') for line in lines) == 20
    assert len(lines) < 90


@pytest.mark.parametrize("value", [[], {}, [[]], {"a": [{}, {"b": [1, [2]]}]}, [[1, 2], "x\n", None], {"é": 1.5}])
def test_formatted_json_has_the_same_content(value: object) -> None:
    assert json.loads(format_json(value)) == value


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_result(path, results.probe())
    before = path.read_text()
    with pytest.raises(TypeError):
        write_result(path, {"a": object()})
    with pytest.raises(ValueError, match="not a result"):
        write_result(path, {"a": 1})
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_mean_and_spread_over_splits() -> None:
    values = [0.5, 0.6, 0.8]
    found = mean_and_spread(values)
    assert found == {"value": pytest.approx(sum(values) / 3), "spread": statistics.stdev(values), "splits": 3}
    assert mean_and_spread([0.5])["spread"] is None
    with pytest.raises(ValueError, match="values"):
        mean_and_spread([])
