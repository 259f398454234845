"""Phrases that read as translated must not come back, neither in code nor in pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.paths import ROOT

THINGS = "frames?|clips?|samples?|videos?|steps?|rows?|pixels|vectors|shards?|files?|batches|queries|keyframes?"
PER = "second|minute|video|clip|shard|core|epoch|step|batch|rank|class|frame|sample|split|line|task|host|row"
PHRASES = (
    # Terms that have a usual name.
    r"mark to beat|reckon(ed|s)?\b|\banew\b|unreachable circles|whole or (absent|not at all)|nothing half[- ]written",
    r"\ball well\b|leave it away|Named settings|Reading on|What is where|the time is up|spoken name",
    r"training of something else|had not settled|players turn|to be had\b|For people\.|nobody foresaw",
    r"\bcome to (its|their) end\b|\bgone on with|goes on with|does not tell|train for a while|it said nothing",
    r"alike within|\bso gone\b|\bgets somewhere\b|\bin turn about\b|for you to get|neighbors are felt",
    # Personified files and commands, inverted clauses.
    r"\bthat there (are|is)\b|\bwhat is said\b|\b(told|tells?) (of|by|that|how|what|which|where|whether|when|why)\b",
    r"\bas (it was )?told\b|\blook(s|ed)? for which\b|\bdecides every\b|\bsplits are not looked at\b",
    # Rates and counts.
    rf"\b({THINGS}) an? ({PER})\b",
    r"\b\d[\d.,]* (GFLOP|MB|kB|GB|MiB|bytes|frames|clips) an? \w+",
    # "training" as a countable noun.
    r"\b(a|every|each|another|one|no) training\b(?=\s*([.,;:)]|$)| (is|was|has|that|of|ends?|stops?|goes|may|can)\b)",
    r"\btrainings\b",
)
BANNED = re.compile("|".join(f"(?:{phrase})" for phrase in PHRASES), re.IGNORECASE)
SUFFIXES = {".py", ".md", ".toml", ".sbatch", ".j2", ".cff"}


def texts() -> list[Path]:
    folders = [ROOT / name for name in ("extract", "train", "eval", "tests", "data_manifests", "docs", "examples")]
    found = [path for folder in folders if folder.is_dir() for path in folder.rglob("*") if path.suffix in SUFFIXES]
    top = [path for path in ROOT.iterdir() if path.suffix in SUFFIXES or path.name == "Makefile"]
    return sorted({*found, *top} - {Path(__file__)})


def test_no_phrase_reads_as_translated() -> None:
    paths = texts()
    assert len(paths) > 200
    hits = []
    for path in paths:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            hits += [f"{path.relative_to(ROOT)}:{number}: {match[0]!r}" for match in BANNED.finditer(line)]
    assert not hits, f"{len(hits)} phrases to reword:\n" + "\n".join(hits)


@pytest.mark.parametrize(
    "text",
    [
        "the mark to beat",
        "Time and disk, reckoned",
        "Make the features anew",
        "Clips a video, at equal spacing",
        "rows a shard",
        "500 frames a second",
        "as it was told",
        "holds a training of something",
    ],
)
def test_translated_phrases_are_found(text: str) -> None:
    assert BANNED.search(text)
