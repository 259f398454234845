"""Fills the page's template; all that comes from users is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TEMPLATES = Path(__file__).parent / "template"
_PAGE = "page.html.j2"


def check_template_engine() -> None:
    """Tells what to install before work is done in vain.

    Raises:
        ValueError: jinja2 is missing.
    """
    try:
        import jinja2  # noqa: F401 -- only whether it is there
    except ImportError as error:
        raise ValueError("jinja2 is missing; run `pip install '.[report]'` in this project's folder") from error


def render_page(content: Mapping[str, Any]) -> str:
    """The page as HTML.

    Args:
        content: what the template ``page.html.j2`` names.

    Raises:
        ValueError: jinja2 is missing.
    """
    check_template_engine()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    def breakable(text: str) -> Markup:
        """Lets long names be broken after slashes and underscores."""
        return Markup(re.sub(r"([/_])", r"\1<wbr>", str(escape(text))))

    def with_code(text: str) -> Markup:
        """Sets what stands in backticks as code."""
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
