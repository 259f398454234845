"""The structure of the three packages: which way imports point, what a module loads, how long files are."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

FILE_LINES, FUNCTION_LINES = 400, 60
PACKAGES = {"cmd_extract": ROOT / "extract", "cmd_train": ROOT / "train", "cmd_eval": ROOT / "eval"}
# Rooms from the top layer to the bottom one. A module imports from its own room and from lower layers only.
LAYERS = {
    "cmd_extract": [
        {"cli", "api"},
        {"cluster"},
        {"run"},
        {"shard"},
        {"decode", "synthetic"},
        {"manifest", "config"},
        {"sources"},
        {"schema"},
        {"system", "errors", "console"},
    ],
    "cmd_train": [
        {"cli"},
        {"engine", "export"},
        {"monitoring", "checkpoints"},
        {"config"},
        {"models"},
        {"augment", "losses"},
        {"data", "recipes", "distributed"},
    ],
    "cmd_eval": [{"cli", "api"}, {"experiments"}, {"report", "tasks"}, {"features"}, {"data"}, {"results", "metrics"}],
}
# What a package may import from its siblings, as prefixes of module names.
ALLOWED = {
    "cmd_extract": (),
    "cmd_train": (
        "cmd_extract.schema",
        "cmd_extract.errors",
        "cmd_extract.console",
        "cmd_extract.shard.folders",
        "cmd_extract.shard.reader",
        "cmd_extract.shard.videos",
        "cmd_extract.shard.drawing",
        "cmd_extract.shard.remote",
        "cmd_extract.shard.cache",
        "cmd_extract.sources.location",
        "cmd_extract.system",
    ),
    "cmd_eval": (
        "cmd_extract.api.frames",
        "cmd_extract.config",
        "cmd_extract.run.job",
        "cmd_extract.schema",
        "cmd_extract.errors",
        "cmd_extract.console",
        "cmd_extract.shard.folders",
        "cmd_extract.shard.reader",
        "cmd_extract.shard.videos",
        "cmd_extract.shard.drawing",
        "cmd_extract.system",
        "cmd_train.config",
        "cmd_train.recipes",
        "cmd_train.data",
        "cmd_train.augment",
        "cmd_train.models",
        "cmd_train.checkpoints",
        "cmd_train.distributed.process_group",
        "cmd_train.monitoring.neighbors",
    ),
}
LOOP = {"cmd_train.engine.loop", "cmd_train.engine.objective", "av", "mvextractor"}


def modules(package: str, root: Path | None = None) -> dict[str, Path]:
    """Module names of a package with their files."""
    top = root or PACKAGES[package]
    files = sorted((top / package).rglob("*.py"))
    return {".".join(path.relative_to(top).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(path: Path) -> set[str]:
    """Full names of what a file imports from the three packages, imports inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.partition(".")[0] in PACKAGES}


def layer(package: str, room: str) -> int:
    return next(depth for depth, rooms in enumerate(LAYERS[package]) if room in rooms)


def upward_imports(package: str, root: Path | None = None) -> list[str]:
    """Imports of a package that do not point down its layers."""
    wrong = []
    for module, path in modules(package, root).items():
        if module == package:
            continue  # the public face of the package imports from anywhere in it
        room = module.split(".")[1]
        for name in imports(path):
            target, _, rest = name.partition(".")
            other = rest.split(".")[0]
            if target == package and other and other != room and layer(package, other) <= layer(package, room):
                wrong.append(f"{module} imports {name}")
    return wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_a_layer(package: str) -> None:
    found = modules(package)
    assert len(found) > 20
    for module in found:
        if module != package:
            assert layer(package, module.split(".")[1]) >= 0


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down_the_layers(package: str) -> None:
    assert upward_imports(package) == []


def test_upward_imports_are_found(tmp_path: Path) -> None:
    shutil.copytree(PACKAGES["cmd_extract"] / "cmd_extract", tmp_path / "cmd_extract")
    grid = tmp_path / "cmd_extract" / "decode" / "grid.py"
    grid.write_text(grid.read_text("utf-8") + "\n\ndef late():\n    from cmd_extract.run import plan\n", "utf-8")
    assert upward_imports("cmd_extract", tmp_path) == ["cmd_extract.decode.grid imports cmd_extract.run.plan"]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_between_packages(package: str) -> None:
    for module, path in modules(package).items():
        for name in imports(path):
            if name.partition(".")[0] != package and name not in PACKAGES:
                assert any(f"{name}.".startswith(f"{prefix}.") for prefix in ALLOWED[package]), (
                    f"{module} imports {name}"
                )


@pytest.mark.parametrize("package", PACKAGES)
def test_inner_package_files_hold_a_docstring_only(package: str) -> None:
    for module, path in modules(package).items():
        if path.name == "__init__.py" and module != package:
            body = ast.parse(path.read_text("utf-8")).body
            assert len(body) == 1, module
            assert isinstance(body[0], ast.Expr), module


@pytest.mark.parametrize("package", PACKAGES)
def test_files_and_functions_are_short(package: str) -> None:
    for module, path in modules(package).items():
        text = path.read_text("utf-8")
        assert len(text.splitlines()) <= FILE_LINES, f"{module}: split it by purpose"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                assert length <= FUNCTION_LINES, f"{module}: {node.name} has {length} lines"


def test_suppressed_lint_errors_name_the_error_and_the_reason() -> None:
    ignored = re.compile(r"# (?:type: ignore|noqa|ruff: noqa)(?:\[[\w, -]*\]|: [A-Z]+\d+(?:, [A-Z]+\d+)*)(.*)")
    seen = 0
    folders = (*PACKAGES.values(), ROOT / "tests")
    for path in [p for folder in folders for p in folder.rglob("*.py") if p != Path(__file__)]:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if any(mark in line for mark in ("# type: ignore", "# noqa", "# ruff: noqa")):
                found = ignored.search(line)
                assert found, f"{path}, line {number}: which error?"
                assert found[1].strip(" #-()"), f"{path}, line {number}: why?"
                seen += 1
    assert seen > 20


def test_hdf5_files_are_opened_without_locks() -> None:
    # Shared file systems often refuse locks; atomically written files need none.
    opened = 0
    for path in [path for package in PACKAGES for path in modules(package).values()]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "h5py.File":
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("locking") == "False", f"{path.name}, line {node.lineno}"
                opened += 1
    assert opened > 2


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("cmd_extract, cmd_train, cmd_eval", {"torch", "av", "mvextractor", "h5py", "numpy"}),
        ("cmd_extract.schema", {"torch", "av", "mvextractor", "h5py"}),
        ("cmd_extract.shard.reader", {"torch", "av", "mvextractor"}),
        ("cmd_extract.run.pipeline", {"torch", "cv2"}),
        ("cmd_train.engine.loop", {"av", "mvextractor", "ffmpeg", "cv2"}),
        ("cmd_train.config", {"torch", "av", "h5py", "scipy", "sklearn"}),
        ("cmd_train.cli.main", {"torch", "numpy"}),
        ("cmd_eval.cli.main", {"torch", "numpy", "h5py", "sklearn"}),
        # Evaluation uses data, models and checkpoints, never the training loop, not even indirectly.
        ("cmd_eval.tasks.run_retrieval", {*LOOP, "sklearn"}),
        ("cmd_eval.experiments.decoupling", LOOP),
        ("cmd_eval.tasks.search", LOOP),
        ("cmd_eval.experiments.auxiliary", {*LOOP, "cmd_train.engine.supervised_objective"}),
        ("cmd_eval.experiments.run", {*LOOP, "cmd_train.engine.supervised_objective"}),
        ("cmd_eval.report.build", {*LOOP, "jinja2", "sklearn"}),
    ],
)
def test_modules_load_only_what_they_need(module: str, forbidden: set[str], tmp_path: Path) -> None:
    program = f"import sys, {module}; bad = {forbidden!r} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
