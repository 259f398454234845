"""Plain-text tables, drawn by rich."""

from __future__ import annotations

import io
from collections.abc import Sequence


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table as plain text: a header, a rule, one line per row, never wrapped.

    Args:
        columns: headings.
        rows: cells as text; a row may be shorter than the header.
        left: number of leading columns aligned to the left; the others, usually numbers, are aligned to the right.

    Returns:
        Lines joined by line breaks, without trailing blanks.
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
