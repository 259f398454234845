"""Render the report page; all text that comes from users is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TEMPLATES = Path(__file__).parent / "template"
_PAGE = "page.html.j2"


def render_page(content: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        content: variables of the template ``page.html.j2``.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    def breakable(text: str) -> Markup:
        """Allow line breaks after slashes and underscores."""
        return Markup(re.sub(r"([/_])", r"\1<wbr>", str(escape(text))))

    def with_code(text: str) -> Markup:
        """Turn text in backticks into code."""
        return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": breakable, "with_code": with_code}
    return environment.get_template(_PAGE).render(**content)
