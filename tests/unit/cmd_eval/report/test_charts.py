from __future__ import annotations

import math

import numpy as np
import pytest

from cmd_eval.report.curves import HEIGHT, WIDTH, format_number, nice_ticks, training_charts
from cmd_eval.report.embedding_map import MAX_CLASSES, MAX_VIDEOS, OTHER, choose_marks, draw_map, project


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1]),
        (0, 0.031, [0, 0.01, 0.02, 0.03, 0.04]),
        (-3.7, -1.1, [-4, -3, -2, -1]),
        (0, 7700, [0, 2000, 4000, 6000, 8000]),
        (5, 5, [2, 4, 6, 8]),
        (0, 0, [0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_enclose_the_range(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_ticks_enclose_random_ranges() -> None:
    random = np.random.default_rng(0)
    for low, width in zip(
        random.normal(size=200) * 10.0 ** random.integers(-8, 8, 200), random.random(200) + 1e-3, strict=True
    ):
        high = low + width * abs(low)
        ticks = nice_ticks(low, high)
        steps = np.diff(ticks)
        assert ticks[0] <= low + 1e-6 * steps[0]
        assert ticks[-1] >= high - 1e-6 * steps[0]
        assert 2 <= len(ticks) <= 7
        np.testing.assert_allclose(steps, steps[0])


def test_numbers_are_formatted_with_few_digits() -> None:
    assert [format_number(v) for v in (0.00001, 1234.5678, -2.5, 3.0)] == ["1e−5", "1235", "−2.5", "3"]  # noqa: RUF001 (minus)


def metrics(steps: int) -> list[dict[str, float]]:
    lines = []
    for step in range(1, steps + 1):
        line = {"step": step, "loss": 10 / step, "context_loss": 4 / step, "context_top1": step / steps}
        line |= {"context_top5": 1.0, "context_candidates": 16, "lr": 0.1, "grad_norm": 3.0}
        line |= {"clips_per_second": 9.0, "data_wait_share": 0.1, "motion_key_uniformity": -2.0}
        if step % 10 == 0:
            line |= {"retrieval_r1": 0.2, "retrieval_r5": 0.5}
        lines.append(line)
    return lines


def test_charts_show_the_metrics_that_were_recorded() -> None:
    charts = {chart.title: chart for chart in training_charts(metrics(40))}
    assert list(charts) == [
        "Loss",
        "Context task, accuracy",
        "Retrieval during training",
        "Learning rate",
        "Gradient norm",
        "Clips per second",
        "Time spent waiting for data",
        "Uniformity of embeddings",
    ]
    assert [line.name for line in charts["Loss"].lines] == ["loss", "context loss"]
    assert [line.last for line in charts["Loss"].lines] == ["0.25", "0.1"]
    top1, top5, chance = charts["Context task, accuracy"].lines
    assert (top1.last, top5.last, chance.last) == ("100 %", "100 %", "6.25 %")
    assert chance.dashed
    assert not top1.dashed
    assert len(charts["Retrieval during training"].lines[0].dots) == 4, "few points are also drawn as dots"
    assert not top1.dots
    assert training_charts([]) == []


def test_points_are_at_the_position_of_their_values() -> None:
    chart = training_charts([{"step": 0, "lr": 0.0}, {"step": 10, "lr": 5.0}])[0]
    (x0, y0), (x1, y1) = (tuple(map(float, point.split(","))) for point in chart.lines[0].points.split())
    assert (x0, y0) == (chart.left, chart.bottom)
    assert x1 == WIDTH - 10
    ys = {text: y for y, text in chart.y_ticks}
    assert y0 == ys["0"]
    assert y1 == pytest.approx(ys["0"] + (ys["2"] - ys["0"]) * 2.5, abs=0.1)
    assert all(0 <= y <= HEIGHT for y in ys.values())


def test_long_runs_are_thinned_to_means_with_a_band() -> None:
    values = np.random.default_rng(0).normal(size=1000).tolist()
    chart = training_charts([{"step": n + 1, "grad_norm": abs(v)} for n, v in enumerate(values)])[0]
    (line,) = chart.lines
    assert chart.steps_per_point == 9
    assert len(line.points.split()) == math.ceil(1000 / 9)
    assert len(line.band.split()) == 2 * len(line.points.split())
    ys = {text: y for y, text in chart.y_ticks}
    px_of_one = ys["0"] - ys["1"]
    found = [(ys["0"] - float(point.split(",")[1])) / px_of_one for point in line.points.split()]
    expected = [np.mean(np.abs(values[start : start + 9])) for start in range(0, 1000, 9)]
    np.testing.assert_allclose(found, expected, atol=0.06 / px_of_one)


def test_values_that_are_not_finite_are_left_out() -> None:
    chart = training_charts([{"step": 1, "loss": math.nan}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 2.0}])[0]
    assert len(chart.lines[0].points.split()) == 2


def blobs(count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    centers = random.normal(size=(3, 16))
    return (centers[np.arange(count) % 3] + 0.05 * random.normal(size=(count, 16))).astype(np.float32)


@pytest.mark.parametrize("count", [12, 60])
def test_a_map_keeps_neighbors_and_is_deterministic(count: int) -> None:
    features = blobs(count)
    found = project(features)
    assert ("PCA" in found.method) == (count < 20)
    np.testing.assert_array_equal(found.xy_N2, project(features).xy_N2)
    np.testing.assert_array_equal(found.rows, np.arange(count))
    distance = np.linalg.norm(found.xy_N2[:, None] - found.xy_N2[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (distance.argmin(1) % 3 == np.arange(count) % 3).all()
    # Cosine similarity: the length of the features does not matter.
    scaled = project(features * np.float32(4))
    np.testing.assert_allclose(scaled.xy_N2, found.xy_N2, atol=1e-3)


def test_large_sets_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmd_eval.report.embedding_map.MAX_VIDEOS", 30)
    found = project(blobs(90))
    assert len(found.rows) == len(set(found.rows.tolist())) == 30
    assert found.rows.max() > 30
    assert MAX_VIDEOS == 2000
    with pytest.raises(ValueError, match="2 videos; an embedding map needs at least 3"):
        project(blobs(2))


def test_frequent_names_have_their_own_mark_and_the_rest_share_one() -> None:
    names = [f"class{n:02}" for n in range(20) for _ in range(40 - n)] + [""] * 5
    marks = choose_marks(names)
    own = [mark for mark in marks.values() if mark.name != OTHER]
    assert len(own) == MAX_CLASSES
    assert {mark.name for mark in own} == {f"class{n:02}" for n in range(MAX_CLASSES)}
    assert len({(mark.color, mark.shape) for mark in own}) == MAX_CLASSES
    for shape in {mark.shape for mark in own}:
        assert len({mark.color for mark in own if mark.shape == shape}) == 2, "color and shape vary together"
    assert marks[""] is marks["class19"]
    assert marks[""].count == 5 + sum(40 - n for n in range(12, 20))


def test_a_map_fits_its_frame_without_distortion() -> None:
    projection = project(blobs(30))
    drawn = draw_map(projection, "label", [str(n % 3) for n in range(30)], [f"video {n}" for n in range(30)])
    xy = np.array([(p.x, p.y) for p in sorted(drawn.points, key=lambda p: int(p.title.split()[1]))])
    assert (xy >= 0).all()
    assert (xy <= [drawn.width, drawn.height]).all()
    scale = np.ptp(xy, axis=0) / np.ptp(projection.xy_N2, axis=0)
    assert scale[0] == pytest.approx(scale[1], rel=0.01)
    assert [mark.count for mark in drawn.marks] == [10, 10, 10]
