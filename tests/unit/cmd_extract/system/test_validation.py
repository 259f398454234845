"""Tests of the checks of settings and arguments."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from cmd_extract.system.validation import require, require_choice, require_range


def test_require_raises_the_message() -> None:
    require(True, "unused")
    with pytest.raises(ValueError, match="clips: must not be empty"):
        require(False, "clips: must not be empty")


@pytest.mark.parametrize(
    ("bounds", "valid", "invalid", "message"),
    [
        ({"ge": 1}, 1, 0, "x: must be at least 1, got 0"),
        ({"gt": 0}, 0.1, 0, "x: must be greater than 0, got 0"),
        ({"ge": 0, "le": 1}, 1, 1.5, "x: must be at least 0 and at most 1, got 1.5"),
        ({"ge": 0, "lt": 1}, 0, 1, "x: must be at least 0 and less than 1, got 1"),
        ({"ge": 0}, 0, math.nan, "x: must be at least 0, got nan"),
    ],
)
def test_range_errors_name_field_bounds_and_value(
    bounds: dict[str, float], valid: float, invalid: float, message: str
) -> None:
    require_range(SimpleNamespace(x=valid, y=valid), "x", "y", **bounds)
    with pytest.raises(ValueError, match=f"^{message}$"):
        require_range(SimpleNamespace(x=invalid), "x", **bounds)


def test_choice_errors_list_the_choices() -> None:
    require_choice(SimpleNamespace(optimizer="sgd"), "optimizer", ("sgd", "adamw"))
    with pytest.raises(ValueError, match="optimizer: must be one of sgd, adamw, got 'adam'"):
        require_choice(SimpleNamespace(optimizer="adam"), "optimizer", ("sgd", "adamw"))
