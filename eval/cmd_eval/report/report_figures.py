"""How a report writes numbers: shares as per cent, intervals, spreads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmd_eval.features.store import spoken_name
from cmd_eval.results.schema import DEFAULT_CLIPS

MISSING = "\N{EN DASH}"
_DASH = "\N{EN DASH}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A table's cell.

    Attributes:
        text: what it says.
        note: what stands below it, smaller; an interval, for example.
    """

    text: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a report.

    Attributes:
        caption: what is to be seen.
        columns: their heads.
        rows: cells, as many as there are columns.
        text_columns: how many columns, from the left, hold words; the others hold numbers.
        quiet_rows: rows at the end that are there for comparison only (chance).
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text_columns: int = 1
    quiet_rows: int = 0

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"rows: {len(row)} cells under {len(self.columns)} columns")


def percent(share: float | None) -> str:
    """A share as per cent with one decimal, without the sign; a dash if there is none."""
    return MISSING if share is None else f"{100 * share:.1f}"


def figure_cell(figure: Mapping[str, Any] | None) -> Cell:
    """A figure with its interval below it."""
    if figure is None or figure["value"] is None:
        return Cell(text=MISSING)
    if figure.get("low") is None or figure.get("high") is None:
        return Cell(text=percent(figure["value"]))
    return Cell(text=percent(figure["value"]), note=f"{percent(figure['low'])}{_DASH}{percent(figure['high'])}")


def spread_cell(mean: Mapping[str, Any] | None) -> Cell:
    """A mean over splits with their standard deviation below it."""
    if mean is None or mean["value"] is None:
        return Cell(text=MISSING)
    spread = mean.get("spread")
    return Cell(text=percent(mean["value"]), note="" if spread is None else f"± {percent(spread)}")


def words(*texts: str) -> list[Cell]:
    """Cells without notes."""
    return [Cell(text=text) for text in texts]


def features_name(provenance: Mapping[str, Any]) -> str:
    """Whose features a result compares, in a few words."""
    if provenance["checkpoint"] is None:
        return spoken_name(str(provenance["features"]))
    clips = provenance.get("clips")
    ending = "" if clips in (None, DEFAULT_CLIPS) else f", {clips} clip{'s' if clips > 1 else ''} a video"
    if provenance["untrained"]:
        return f"the same network, untrained{ending}"
    step = provenance["step"]
    return ("trained network" if step is None else f"trained network, step {step}") + ending
