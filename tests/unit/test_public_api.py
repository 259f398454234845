"""The public names of the three packages: all of them load, and unknown ones are attribute errors."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

PACKAGES = [importlib.import_module(name) for name in ("cmd_extract", "cmd_train", "cmd_eval")]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_public_names_are_documented_and_load(package: ModuleType) -> None:
    assert package.__doc__
    assert dir(package) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__doc__
        assert f"`{name}`" in package.__doc__
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        _ = package.nothing
