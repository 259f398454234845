"""Checks of settings and arguments; their errors name the field, its value and the allowed range."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection
from fractions import Fraction

_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?(e[0-9]{1,2})?|\.[0-9]+|[0-9]+/[0-9]+", re.IGNORECASE)


def require(condition: bool, message: str) -> None:
    """Raise ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_range(
    owner: object,
    *names: str,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> None:
    """Check that attributes of ``owner`` lie within bounds; NaN never does.

    Args:
        owner: object with the attributes, such as a settings dataclass.
        names: attributes to check.
        ge, gt, le, lt: bounds: at least, greater than, at most, less than.

    Raises:
        ValueError: a value is out of range.
    """
    bounds = (
        (ge, operator.ge, "at least"),
        (gt, operator.gt, "greater than"),
        (le, operator.le, "at most"),
        (lt, operator.lt, "less than"),
    )
    checks = [(bound, holds, words) for bound, holds, words in bounds if bound is not None]
    allowed = " and ".join(f"{words} {bound}" for bound, _, words in checks)
    for name in names:
        value = getattr(owner, name)
        require(all(holds(value, bound) for bound, holds, _ in checks), f"{name}: must be {allowed}, got {value}")


def require_finite(owner: object, *names: str) -> None:
    """Check that attributes of ``owner`` are finite numbers.

    Raises:
        ValueError: a value is infinite, NaN or not a number.
    """
    for name in names:
        value = getattr(owner, name)
        valid = isinstance(value, int | float) and math.isfinite(value)
        require(valid, f"{name}: must be a finite number, got {value}")


def parse_number(text: str) -> Fraction | None:
    """Return the exact value of a number that is not negative, written as in ``25``, ``29.97`` or ``30000/1001``.

    Unlike ``Fraction``, underscores and digits of other scripts are refused, which other programs do not read.

    Returns:
        None if the text is not such a number.
    """
    try:
        return Fraction(text) if _NUMBER.fullmatch(text) else None
    except (ValueError, ZeroDivisionError):
        return None


def require_choice(owner: object, name: str, choices: Collection[str]) -> None:
    """Check that an attribute of ``owner`` is one of ``choices``.

    Raises:
        ValueError: it is not.
    """
    value = getattr(owner, name)
    require(value in choices, f"{name}: must be one of {', '.join(choices)}, got {value!r}")
