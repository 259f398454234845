"""The public names of the three packages: all of them load, and unknown ones are attribute errors."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from types import ModuleType

import pytest

from tests.paths import ROOT

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


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_public_names_are_in_the_reference(package: ModuleType) -> None:
    name = package.__name__
    rendered = set(re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference" / f"{name}.md").read_text("utf-8"), re.M))
    errors = {public for public in package.__all__ if getattr(package, public).__module__ == "cmd_extract.errors"}
    expected = {f"{name}.{public}" for public in package.__all__ if public not in errors}
    assert rendered == expected | ({"cmd_extract.errors"} if errors else set())


@pytest.mark.parametrize("folder", ["extract", "train", "eval"])
def test_the_library_raises_no_errors_of_click_and_prints_nothing(folder: str) -> None:
    # The command line and its console are click's; the main program of a data worker or a task may print.
    seen = 0
    for path in sorted((ROOT / folder / f"cmd_{folder}").rglob("*.py")):
        room = path.relative_to(ROOT / folder / f"cmd_{folder}").parts[0]
        if room in ("cli", "console"):
            continue
        seen += 1
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert "click" not in {name.partition(".")[0] for name in names}, path
            assert not (isinstance(node, ast.Call) and ast.unparse(node.func) == "print"), path
    assert seen > 10


def test_the_configuration_is_imported_fast() -> None:
    program = "import time; before = time.process_time(); import cmd_train.config; print(time.process_time() - before)"
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        if (seconds := float(done.stdout)) < 0.3:  # a busy machine is slower at times
            break
    assert seconds < 0.3
