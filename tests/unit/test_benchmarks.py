"""The benchmarks run and write complete files; no test asserts a speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.growth import slope
from tests.benchmarks.harness import read_entries, update_entries
from tests.benchmarks.measuring import Cost, Result, interleave, markdown_table, measure_children, text_table
from tests.benchmarks.plan_cluster import read_rates
from tests.benchmarks.run import SCRIPTS, choose
from tests.benchmarks.vectors import OWN_STREAMS, REPEATS, SHARE, codec_results, scale_cost, worse_codec
from tests.paths import ROOT

MAIN_FIGURES = """extract_overhead extract_fps vectors_fps_core vectors_vs_mvextractor vectors_vs_decode extract_scaling
extract_rss_mb loader_clips_core loader_vs_online loader_vs_jpeg sample_gflop step_native_vs_paper
retrieval_queries_per_s"""


def entry(name: str, *values: float) -> dict[str, object]:
    return Result(name=name, values=values, unit="x", versus="a peer", source="noise").entry("a machine", 0.5)


def test_quick_run_writes_a_complete_benchmark_file(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    update_entries(output, [entry("other", 1.0)])
    command = [sys.executable, "-m", "tests.benchmarks.run", "--quick", "--only", "retrieval_queries_per_s"]
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    entries = {e["name"]: e for e in json.loads(output.read_text("utf-8"))}
    assert list(entries) == ["other", "retrieval_queries_per_s", "retrieval_vs_product"]
    found = entries["retrieval_queries_per_s"]
    assert isinstance(found["value"], float)
    assert 0 < found["low"] <= found["value"] <= found["high"]
    assert found["rounds"] == 2
    assert found["unit"] == "queries/s"
    for field in ("versus", "machine", "source"):
        assert isinstance(found[field], str)
        assert found[field]
    assert "no measurement" in found["machine"]
    assert "retrieval_queries_per_s" in done.stdout


def test_every_main_figure_has_a_script() -> None:
    scripts = {name: script for script, names in SCRIPTS.items() for name in names}
    assert set(MAIN_FIGURES.split()) <= set(scripts)
    for name, script in scripts.items():
        if script in ("vectors", "extraction_workers"):  # their names are composed
            continue
        text = (ROOT / "tests" / "benchmarks" / f"{script}.py").read_text("utf-8")
        assert f'"{name}"' in text
    assert choose(["sample_gflop", "vectors"]) == ["vectors", "sample_cost"]
    with pytest.raises(ValueError, match="nothing"):
        choose(["nothing"])


def test_result_is_the_median_with_its_range() -> None:
    found = entry("figure", 3.0, 1.0, 1000.0)
    assert (found["value"], found["low"], found["high"], found["rounds"]) == (3.0, 1.0, 1000.0, 3)
    assert "3.00" in text_table([found])
    assert "| `figure` | 3.00 | 1.00 to 1,000 | x | a peer |" in markdown_table([found])
    with pytest.raises(ValueError, match="figure"):
        entry("figure", float("nan"))


def test_processor_time_counts_child_processes_and_sides_are_interleaved() -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    cost = measure_children(lambda: subprocess.run([sys.executable, "-c", busy], check=True, timeout=60))
    idle = measure_children(lambda: None)
    assert cost.cpu >= 0.25
    assert idle.cpu < 0.05
    order: list[str] = []
    costs = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [set(row) for row in costs] == [{"a", "b"}] * 3


def test_entries_replace_entries_of_the_same_name(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "bench.json"
    update_entries(path, [entry("extract_fps_core", 1.0), entry("extract_fps", 2.0)])
    update_entries(path, [entry("extract_fps_core", 300.0)])
    assert [(e["name"], e["value"]) for e in read_entries(path)] == [("extract_fps_core", 300.0), ("extract_fps", 2.0)]
    # Clusters are planned with the rate per core, not with that of the machine.
    assert read_rates(path) == {"extract_fps_core": 300.0}
    with pytest.raises(ValueError, match="cannot be read"):
        read_entries(tmp_path / "absent.json")
    update_entries(path, [entry("extract_fps", 2.0) | {"machine": "two cores; --quick: no measurement"}])
    with pytest.raises(ValueError, match="--quick"):
        read_rates(path)


@pytest.mark.parametrize("field", ["name", "value", "machine"])
def test_missing_field_is_an_error_that_names_the_file(field: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    complete = entry("extract_fps_core", 1.0)
    path.write_text(json.dumps([complete, {key: value for key, value in complete.items() if key != field}]))
    with pytest.raises(
        ValueError, match=f"bench.json: an entry lacks the field '{field}'; create the file again with python"
    ):
        read_rates(path)


def test_slope_of_a_power_law() -> None:
    assert slope((1, 2, 4, 8), [5 * size**1.07 for size in (1, 2, 4, 8)]) == pytest.approx(1.07)
    with pytest.raises(RuntimeError, match="noisy"):
        slope((1, 2, 4, 8), [1.0, 0.0, 1.0, 2.0])


def round_costs(extract: float, mvextractor: float, pyav: float, decode: float) -> dict[str, Cost]:
    """CPU times of one round; start-up takes 0.5 s for cmd-extract and 0.1 s for mvextractor's loop."""
    cpu = {"cmd-extract": extract, "mvextractor": mvextractor, "pyav": pyav, "decode": decode}
    cpu |= {"cmd-extract start": 0.5, "mvextractor start": 0.1}
    return {name: Cost(cpu=seconds, wall=0.0) for name, seconds in cpu.items()}


def test_vectors_are_compared_with_and_without_start_up_and_by_the_worse_codec() -> None:
    slow, fast = [round_costs(2.5, 2.1, 5.0, 7.5)] * 3, [round_costs(1.5, 2.1, 1.2, 3.0)] * 3
    results = [*codec_results("h264", 1000, slow, "noise"), *codec_results("mpeg4", 3000, fast, "noise")]
    figures = {result.name: result for result in (*worse_codec(results), *results)}
    assert set(SCRIPTS["vectors"]) <= set(figures)
    values = {name: result.value for name, result in figures.items()}
    assert values["vectors_fps_core_h264"] == values["vectors_fps_core"] == pytest.approx(1000 / 2.5)
    assert values["vectors_vs_mvextractor_h264"] == values["vectors_vs_mvextractor"] == pytest.approx(2.1 / 2.5)
    assert values["vectors_vs_mvextractor_running"] == pytest.approx((2.1 - 0.1) / (2.5 - 0.5))
    assert values["vectors_vs_mvextractor_running_mpeg4"] == pytest.approx((2.1 - 0.1) / (1.5 - 0.5))
    assert values["vectors_vs_pyav"] == pytest.approx(1.2 / 1.5)
    assert values["vectors_vs_decode"] == pytest.approx(3.0 / 1.5)
    assert figures["vectors_vs_pyav"].versus.endswith("the worse codec (mpeg4)")


def test_costs_of_shorter_files_are_scaled_without_start_up() -> None:
    assert set(REPEATS) == set(OWN_STREAMS)
    for codec, times in REPEATS.items():
        assert times % SHARE == 0, codec
    cost = scale_cost(Cost(cpu=2.3, wall=1.1), Cost(cpu=0.3, wall=0.1), 4)
    assert (cost.cpu, cost.wall) == (pytest.approx(0.3 + 4 * 2.0), pytest.approx(0.1 + 4 * 1.0))
