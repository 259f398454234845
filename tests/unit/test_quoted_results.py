"""The figures that README.md quotes are those of the pages and files with the evidence."""

from __future__ import annotations

import re

import pytest

from cmd_eval.results.published import published_figures
from tests.paths import ROOT

README, RESULTS, BENCHMARKS = (
    (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "eval/RESULTS.md", "tests/benchmarks/README.md")
)
NUMBER = r"[+-]?\d+(?:,\d{3})*(?:\.\d+)?"

# Words in the headers of tables of RESULTS.md.
GESTURES, SCENES = "by label, over splits", "by group, leave-one-out"
LABELED = "minus from scratch"
# Rows of README's table of gestures that have other names in RESULTS.md.
NAMES = {
    "both heads": "both heads, grid-ordered",
    "context head only": "context head only, grid-ordered",
    "the paper's motion loss only": "motion head only, contrastive, grid-ordered",
    "untrained": "untrained, grid-ordered",
    "motion grids, hand-crafted baseline": "motion grids",
}
# Other places of README, N for each figure, with the table, row and column of RESULTS.md that each figure comes from.
IN_TABLES = {
    "reaches N % R@1": [(GESTURES, "both heads, grid-ordered", "R@1")],
    "chance level (N %)": [(GESTURES, "untrained, grid-ordered", "R@1")],
    "reaches N % top-1": [(LABELED, "from the label-free weights (both heads)", "mean")],
    "N % from scratch": [(LABELED, "from scratch", "mean")],
}
AUXILIARY = "motion prediction adds N points on the demo videos"
DEMO_SEEDS = "seeds 0 to 4 reached N to N % by motion and N to N % by context."


def numbers(page: str, sentence: str) -> list[str]:
    """Return the numbers in the places N of words that occur once in a page, over one or more lines."""
    words = [NUMBER.join(map(re.escape, re.split(r"\bN\b", word))) for word in sentence.split()]
    found = re.findall(r"\s+".join(words).replace(NUMBER, f"({NUMBER})"), page)
    assert len(found) == 1, f"{len(found)} times in the page instead of once: {sentence!r}"
    return [found[0]] if isinstance(found[0], str) else list(found[0])


def table(page: str, header: str) -> dict[str, dict[str, str]]:
    """Return the cells, by row and column, of the only table whose header contains ``header``."""
    blocks = [block for block in re.findall(r"(?:^\|.*\n)+", page, re.M) if header in block.partition("\n")[0]]
    assert len(blocks) == 1, f"{len(blocks)} tables instead of one have {header!r} in their header"
    lines = blocks[0].replace("*", "").splitlines()
    columns, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows}


def test_gestures() -> None:
    rows = table(README, "by gesture | by scene")
    assert len(rows) >= 6
    for column, header in (("by gesture", GESTURES), ("by scene", SCENES)):
        known = table(RESULTS, header)
        for name, cells in rows.items():
            expected = known[NAMES.get(name, name)]["R@1"]
            assert cells[column] == expected.replace("-", " to "), f"{name}, {column}"


@pytest.mark.parametrize("sentence", IN_TABLES)
def test_sentences(sentence: str) -> None:
    cells = [table(RESULTS, header)[row][column] for header, row, column in IN_TABLES[sentence]]
    assert numbers(README, sentence) == [re.match(NUMBER, cell)[0] for cell in cells]


def test_the_auxiliary_loss() -> None:
    (gain,) = numbers(README, AUXILIARY)
    assert [gain] == numbers(RESULTS, "the auxiliary loss adds N points")
    rows = table(RESULTS, "seed | 0 | 1")
    scratch, auxiliary = (float(cells["mean"]) for cells in rows.values())
    assert float(gain) == pytest.approx(auxiliary - scratch, abs=0.05)


def test_the_demo() -> None:
    rows = table(README, "by motion (`label`), R@1")
    assert rows == table(RESULTS, "by motion (`label`), R@1")
    cells = [
        re.match(NUMBER, rows[name][column])[0]
        for name in ("trained backbone, from RGB alone", "randomly initialized backbone", "chance")
        for column in ("by motion (`label`), R@1", "by context (`group`), R@1")
    ]
    assert cells[:2] == numbers(RESULTS, "R@1 by motion N %, by context N %.")
    assert cells[2:] == numbers(RESULTS, "reaches N % by motion and N % by context; chance is N and N %.")
    of_seeds = numbers(RESULTS, "by motion N, N, N, N and N %, by context N, N, N, N and N %.")
    motion, context = ([float(number) for number in part] for part in (of_seeds[:5], of_seeds[5:]))
    ranges = [f"{end(part):.0f}" for part in (motion, context) for end in (min, max)]
    assert numbers(README, DEMO_SEEDS) == ranges


def test_published_figures() -> None:
    rows = table(README, "in % | UCF101 | HMDB51")
    assert len(rows) == 3
    for name, cells in rows.items():
        measure, pretrained_on = re.fullmatch(r"(.+), pre-trained on (.+)", name).groups()
        key = (measure, "CMD", "R(2+1)D-26", pretrained_on)
        (figure,) = (f for f in published_figures() if (f.measure, f.method, f.backbone, f.pretrained_on) == key)
        assert cells == {dataset: f"{100 * value:.1f}" for dataset, value in figure.by_dataset.items()}


def test_speed() -> None:
    medians = [
        numbers(BENCHMARKS, f"| `{name}` | N |") for name in ("extract_fps", "extract_overhead", "loader_clips_core")
    ]
    assert [
        *numbers(README, "at N frames/s on two cores, in N times the CPU time"),
        *numbers(README, "reads clips from shards (N per second per core)"),
    ] == [median for (median,) in medians]
    peers = [
        float(numbers(BENCHMARKS, f"| `loader_vs_{peer}` | N |")[0])
        for peer in ("pyav", "torchcodec", "torchcodec_exact", "decord")
    ]
    quoted = numbers(README, "N to N times as fast as PyAV, TorchCodec and decord decode them")
    assert quoted == [f"{min(peers):.0f}", f"{max(peers):.0f}"]


def test_every_percentage_is_checked() -> None:
    """Percentages and points in the text of README are those above."""
    text = re.sub(r"^\|.*\n", "", README, flags=re.M)
    checked = [number for sentence in (*IN_TABLES, AUXILIARY) for number in numbers(README, sentence)]
    checked += numbers(README, DEMO_SEEDS)[1::2]
    assert sorted(re.findall(rf"({NUMBER}) (?:%|points)(?! interval)", text)) == sorted(checked)
