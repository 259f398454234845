"""Render the report page; all text that comes from users is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TEMPLATES = Path(__file__).parent / "template"
_PAGE = "page.html.j2"


# A quoted path may contain spaces. Relative paths, URLs and data URIs are kept.
_QUOTED_PATH = re.compile(r"'/(?:[^'/]+/)*([^'/]+)/?'")
_PATH = re.compile(r"(?<![\w.:/~<'-])/(?:[^\s/'\",;()]+/)*([^\s/'\",;()]+)")


def without_folders(text: str) -> str:
    """Shorten absolute paths to their last part: where files were on one machine is nobody else's business."""
    return _PATH.sub(r"\1", _QUOTED_PATH.sub(r"'\1'", text))


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
        return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(without_folders(text)))))

    def shortened(value: object) -> object:
        is_text = isinstance(value, str) and not isinstance(value, Markup) and not value.startswith("data:")
        return without_folders(value) if is_text else value  # type: ignore[arg-type] # checked

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=shortened,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": breakable, "with_code": with_code}
    return environment.get_template(_PAGE).render(**content)
