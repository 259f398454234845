from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

FILE_LINES, FUNCTION_LINES = 300, 60
PACKAGES = ("extract", "train", "eval")
# What a package may import of its siblings; None means any module of it.
ALLOWED = {
    "extract": {},
    "train": {"extract": {"schema", "shard_reader"}},
    "eval": {"extract": {"schema", "shard_reader"}, "train": None},
}

LOOP = {
    "cmd_train.engine.loop",
    "cmd_train.monitoring.metrics",
    "cmd_train.engine.objective",
    "av",
    "mvextractor",
}


def imports(path: Path) -> set[tuple[str, str]]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            package, _, module = node.module.partition(".")
            found |= {(package, module)} if module else {(package, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name.partition(".")[0], alias.name.partition(".")[2]) for alias in node.names}
    return {(package, module) for package, module in found if package in PACKAGES}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    files = list((ROOT / package).glob("*.py"))
    assert files
    for path in files:
        for target, module in imports(path):
            if target == package:
                assert module != "cli", f"{path.name} imports the command line"
                continue
            allowed = ALLOWED[package].get(target, set())
            assert allowed is None or module in allowed, f"{package}/{path.name} imports {target}.{module}"


def test_package_files_hold_a_docstring_only() -> None:
    for package in PACKAGES:
        body = ast.parse((ROOT / package / "__init__.py").read_text("utf-8")).body
        assert len(body) == 1
        assert isinstance(body[0], ast.Expr)


@pytest.mark.parametrize("package", PACKAGES)
def test_files_and_functions_are_short(package: str) -> None:
    for path in (ROOT / package).glob("*.py"):
        text = path.read_text("utf-8")
        assert len(text.splitlines()) <= FILE_LINES, f"{package}/{path.name}: split it by purpose"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                assert length <= FUNCTION_LINES, f"{package}/{path.name}: {node.name} has {length} lines"


def test_errors_are_ignored_for_a_reason_only() -> None:
    ignored = re.compile(r"# (?:type: ignore|noqa|ruff: noqa)(?:\[[\w, -]*\]|: [A-Z]+\d+(?:, [A-Z]+\d+)*)(.*)")
    seen = 0
    for path in [p for folder in (*PACKAGES, "tests") for p in (ROOT / folder).rglob("*.py") if p != Path(__file__)]:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if any(mark in line for mark in ("# type: ignore", "# noqa", "# ruff: noqa")):
                found = ignored.search(line)
                assert found, f"{path}, line {number}: which error?"
                assert found[1].strip(" #-()"), f"{path}, line {number}: why?"
                seen += 1
    assert seen > 20


def test_no_hdf5_file_is_opened_with_locks() -> None:
    # Shared file systems often refuse them; whole files under their final name need none.
    opened = 0
    for path in [p for package in PACKAGES for p in (ROOT / package).glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "h5py.File":
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("locking") == "False", f"{path.name}, line {node.lineno}"
                opened += 1
    assert opened > 2


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("cmd_extract.schema", {"torch", "av", "mvextractor", "h5py"}),
        ("cmd_extract.shard.reader", {"torch", "av", "mvextractor"}),
        ("cmd_extract.run.pipeline", {"torch", "cv2"}),
        ("cmd_train.engine.loop", {"av", "mvextractor", "ffmpeg", "cv2"}),
        ("cmd_train.cli.main", {"torch", "numpy"}),
        ("eval.cli", {"torch", "numpy", "h5py", "sklearn"}),
        # Evaluation uses data, model and checkpoints, never the loop, not even by way of another module.
        (
            "eval.run_retrieval",
            {
                "cmd_train.engine.loop",
                "cmd_train.monitoring.metrics",
                "cmd_train.engine.objective",
                "av",
                "mvextractor",
                "sklearn",
            },
        ),
        (
            "eval.decoupling",
            {
                "cmd_train.engine.loop",
                "cmd_train.monitoring.metrics",
                "cmd_train.engine.objective",
                "av",
                "mvextractor",
            },
        ),
        (
            "eval.search",
            {
                "cmd_train.engine.loop",
                "cmd_train.monitoring.metrics",
                "cmd_train.engine.objective",
                "av",
                "mvextractor",
            },
        ),
        (
            "eval.run_auxiliary",
            {
                "cmd_train.engine.loop",
                "cmd_train.monitoring.metrics",
                "cmd_train.engine.supervised_objective",
                "av",
                "mvextractor",
            },
        ),
        (
            "eval.run_evidence",
            {
                "cmd_train.engine.loop",
                "cmd_train.monitoring.metrics",
                "cmd_train.engine.supervised_objective",
                "av",
                "mvextractor",
            },
        ),
        (
            "eval.report",
            {
                "cmd_train.engine.loop",
                "cmd_train.monitoring.metrics",
                "cmd_train.engine.objective",
                "av",
                "mvextractor",
                "jinja2",
                "sklearn",
            },
        ),
    ],
)
def test_what_a_module_does_not_load(module: str, forbidden: set[str]) -> None:
    program = f"import sys, {module}; bad = {forbidden!r} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_readme_names_every_module() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for package in PACKAGES:
        start = readme.index(f"\n{package}/ ")
        following = [readme.find(f"\n{other}/ ", start + 1) for other in (*PACKAGES, "data_manifests")]
        section = readme[start : min(end for end in following if end > 0)]
        words = set(re.findall(r"\w+", section))
        modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
        assert modules <= words, f"{package}: {sorted(modules - words)}"
