"""Tables of shares as plain text, Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmd_extract.console.tables import format_markdown, format_table

FORMATS = ("table", "markdown", "latex", "csv")
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)


@dataclass(frozen=True)
class Cell:
    """A table cell.

    Attributes:
        text: text as shown; numbers in percent.
        values: for a number, its fields for CSV files: fractions.
    """

    text: str
    values: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; rows may be shorter than the header.

    Attributes:
        title: name of the table, for CSV files.
        columns: headings; the first column holds names, the others numbers.
        rows: cells.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def number_cell(value: Mapping[str, Any], *, signed: bool = False) -> Cell:
    """Format a share in percent, with its interval or standard deviation; ``signed`` for differences."""
    sign = "+" if signed else ""
    text = f"{100 * value['value']:{sign}.1f}"
    if value.get("low") is not None:
        dots = ".." if signed else "-"
        text += f" ({100 * value['low']:{sign}.1f}{dots}{100 * value['high']:{sign}.1f})"
    elif value.get("spread") is not None:
        text += f" +- {100 * value['spread']:.1f}"
    fields = ("value", "low", "high", "spread")
    return Cell(text, {name: value[name] for name in fields if value.get(name) is not None})


def format_tables(tables: Sequence[Table], style: str) -> str:
    """Return tables in one of ``FORMATS``.

    CSV has one line per number, as fractions: table, row, column, value, and low and high, or spread.
    """
    if style == "csv":
        return _csv(tables)
    write: dict[str, Callable[[Table], str]] = {"table": _text, "markdown": _markdown, "latex": _latex}
    return "\n\n".join(write[style](table) for table in tables)


def _text(table: Table) -> str:
    return format_table(table.columns, [[cell.text for cell in row] for row in table.rows])


def _markdown(table: Table) -> str:
    return format_markdown(table.columns, [[cell.text for cell in row] for row in table.rows])


def _latex(table: Table) -> str:
    """Return a tabular for the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        padded = [*cells, *[""] * (len(table.columns) - len(cells))]
        return " & ".join(_latex_text(cell) for cell in padded) + r" \\"

    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            line(table.columns),
            r"\midrule",
            *(line([cell.text for cell in row]) for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _latex_text(text: str) -> str:
    return text.translate(_LATEX).replace("+-", r"$\pm$").replace("..", r" to ")


def _csv(tables: Sequence[Table]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    fields = ("value", "low", "high", "spread")
    writer.writerow(["table", "row", "column", *fields])
    for table in tables:
        for name, *cells in table.rows:
            for column, cell in zip(table.columns[1:], cells, strict=False):
                if cell.values is not None:
                    writer.writerow([table.title, name.text, column, *(cell.values.get(field, "") for field in fields)])
    return stream.getvalue().rstrip("\n")
