"""Tables as plain text, laid out by rich, and as Markdown."""

from __future__ import annotations

import io
from collections.abc import Sequence


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Format a table as plain text: a header, a rule and one line per row, never wrapped.

    Args:
        columns: column headings.
        rows: cells; a row may be shorter than the header.
        left: number of leading left-aligned columns; the other columns, usually numbers, are right-aligned.

    Returns:
        Lines joined by line breaks, without trailing spaces.
    """
    # Slow to import, and only some commands print tables.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, heading in enumerate(columns):
        table.add_column(Text(heading), justify="left" if number < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    stream = io.StringIO()
    console = Console(file=stream, width=1 << 14, color_system=None, legacy_windows=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def format_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Format a table as Markdown; arguments as in ``format_table``."""
    rule = ["---" if number < left else "---:" for number in range(len(columns))]
    lines = [columns, rule, *([*row, *[""] * (len(columns) - len(row))] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.strip().replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
