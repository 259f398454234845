"""Tests of the checks of settings and arguments."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace

import pytest

from cmd_extract.system.validation import parse_number, require, require_choice, require_finite, require_range


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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", None])
def test_finite_numbers(value: object) -> None:
    require_finite(SimpleNamespace(x=1.5, y=3), "x", "y")
    with pytest.raises(ValueError, match=rf"x: must be a finite number, got {value}"):
        require_finite(SimpleNamespace(x=value), "x")


@pytest.mark.parametrize("text", ["25", "25.", "25.0", "25/1", "50/2", "2.5e1", "2.5E1"])
def test_equal_numbers_have_equal_values(text: str) -> None:
    assert parse_number(text) == Fraction(25)


@pytest.mark.parametrize(
    "text", ["", "x", "1_5", "\uff12\uff15", "1/0", "-1", "+1", " 1", "inf", "nan", "1e999", "1/2.5"]
)
def test_texts_that_other_programs_do_not_read_are_no_numbers(text: str) -> None:
    assert parse_number(text) is None
