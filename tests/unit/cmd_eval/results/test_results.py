from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from cmd_eval.data.splits import EvalSplitSpec
from cmd_eval.experiments.decoupling import DecouplingSpec
from cmd_eval.features.source import name_suffixes
from cmd_eval.results.schema import Provenance, mean_and_spread, read_result, result_name, result_record, write_result
from cmd_eval.tasks.recognition import recognition_file_name

SOURCE = Provenance(command="cmd-eval test", shards="shards", data_hash="abc", features="backbone, pooled", seed=3)


def test_result_round_trip_keeps_the_provenance(tmp_path: Path) -> None:
    path = tmp_path / "run" / "eval" / "probe.json"
    write_result(path, result_record("probe", SOURCE, splits=[{"top1": float("nan")}]))
    record = read_result(path, "probe")
    assert record["format"] == 1
    assert record["splits"] == [{"top1": None}]
    fields = "command created versions shards data_hash checkpoint checkpoint_sha256 trained_on step untrained settings"
    assert set(record["provenance"]) == {
        *fields.split(),
        "seed",
        "features",
        "clips",
        "readout",
        "standardized",
        "pretext",
        "initial_weights",
    }
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
    write_result(path, result_record("probe", SOURCE))
    with pytest.raises(ValueError, match="is a probe result, expected retrieval"):
        read_result(path, "retrieval")
    with pytest.raises(ValueError, match="'poll' is not one of"):
        result_record("poll", SOURCE)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    with pytest.raises(ValueError, match="format version 9"):
        read_result(path)
    for text in ("[]", "{", '{"kind": "probe"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="not a result"):
            read_result(path)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_result(path, {"a": 1})
    with pytest.raises(TypeError):
        write_result(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_mean_and_spread_over_splits() -> None:
    values = [0.5, 0.6, 0.8]
    found = mean_and_spread(values)
    assert found == {"value": pytest.approx(sum(values) / 3), "spread": statistics.stdev(values), "splits": 3}
    assert mean_and_spread([0.5])["spread"] is None
    with pytest.raises(ValueError, match="values"):
        mean_and_spread([])
