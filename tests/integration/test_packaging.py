"""Contents of the wheel and the sdist; the installed commands work outside the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.paths import ROOT

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
FOLDERS = ("extract", "train", "eval")
PACKAGES = tuple(f"cmd_{folder}" for folder in FOLDERS)
DATA = {
    "cmd_extract/py.typed",
    "cmd_extract/cluster/slurm/extract.sbatch",
    "cmd_train/py.typed",
    "cmd_train/cli/slurm/pretrain.sbatch",
    "cmd_eval/py.typed",
    "cmd_eval/report/template/macros.html.j2",
    "cmd_eval/report/template/page.html.j2",
    "cmd_eval/report/template/style.css",
    "cmd_eval/results/published.csv",
}
# Untracked files of a checkout; a clone has none of them.
NOT_CLONED = (".*", "build", "dist", "shared", "*.egg-info", "__pycache__")
SECONDS = 300


def run(*command: object, cwd: Path, **environment: str) -> str:
    words = [str(word) for word in command]
    # PYTHONPATH may name the checkout, which must not shadow the installed packages.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(words, cwd=cwd, env=variables, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both archives. The wheel is built from the sdist, so that files missing from the sdist are noticed."""
    tree = tmp_path_factory.mktemp("clone") / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_CLONED))
    # Stray files of a working tree must not be packed.
    for stray in ("build/demo/run.json", "extract/notes.txt", "eval/picture.png", "docs/picture.png"):
        path = tree / stray
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("stray")
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree, cwd=tree)
    return out


def modules() -> set[str]:
    found = {path.relative_to(ROOT / name).as_posix() for name in FOLDERS for path in (ROOT / name).rglob("*.py")}
    assert len(found) > 100
    return found


def test_wheel_holds_the_packages_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert wheel.name == f"context_motion_decoupling-{PROJECT['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        empty = {item.filename for item in archive.infolist() if item.file_size == 0}
    info = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    about = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")}
    assert names == modules() | DATA | about | {f"{info}/licenses/LICENSE"}
    assert empty == {f"{package}/py.typed" for package in PACKAGES}


def test_sdist_holds_the_sources_of_the_wheel(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        paths = [Path(item.name) for item in archive.getmembers() if item.isfile()]
    names = {Path(*path.parts[1:]).as_posix() for path in paths}
    assert {path.parts[0] for path in paths} == {sdist.name.removesuffix(".tar.gz")}
    documents = {"README.md", "LICENSE", "LICENSES.md", "CHANGELOG.md", "CITATION.cff", "data_manifests/demo.csv"}
    documents |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    documents |= {
        "extract/PLANNING.md",
        "eval/RESULTS.md",
        *(f"{folder}/README.md" for folder in (*FOLDERS, "data_manifests")),
    }
    packages = {f"{name.partition('/')[0].removeprefix('cmd_')}/{name}" for name in modules() | DATA}
    assert names == packages | documents | {"pyproject.toml", "PKG-INFO"}


def test_installed_commands_run_outside_the_tree(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    target = tmp_path / "site"
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        target,
        wheel,
        cwd=tmp_path,
    )
    assert {path.name for path in (target / "bin").iterdir()} == set(PROJECT["scripts"])
    outside = tmp_path / "outside"
    # A user's own modules of these names must not be imported instead.
    (outside / "extract").mkdir(parents=True)
    for path in (outside / "extract" / "__init__.py", outside / "train.py", outside / "eval.py"):
        path.write_text("raise ImportError('not this one')\n")
    for name, place in PROJECT["scripts"].items():
        command, package = target / "bin" / name, place.partition(".")[0]
        program = f"import cmd_extract, cmd_train, cmd_eval, {package}.cli.main as main; print(main.__file__)"
        for path in (str(target), f".{os.pathsep}{target}"):
            assert run(command, "--version", cwd=outside, PYTHONPATH=path).split()[-1] == PROJECT["version"]
            assert run(command, "--help", cwd=outside, PYTHONPATH=path).startswith(f"Usage: {name} ")
            loaded = Path(run(sys.executable, "-c", program, cwd=outside, PYTHONPATH=path).strip())
            assert loaded == target / package / "cli" / "main.py"
    batch_script = run(target / "bin" / "cmd-train", "sbatch", cwd=outside, PYTHONPATH=str(target))
    assert batch_script == (ROOT / "train" / "cmd_train" / "cli" / "slurm" / "pretrain.sbatch").read_text("utf-8")
    recipes = run(target / "bin" / "cmd-train", "recipes", cwd=outside, PYTHONPATH=str(target))
    assert "ucf101" in recipes


@pytest.fixture(scope="module")
def fresh_python(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new virtual environment with the wheel; the dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    (wheel,) = dist.glob("*.whl")
    words = ("--quiet", "--no-deps", "--no-index", "--target", site)
    run(sys.executable, "-m", "pip", "install", *words, wheel, cwd=folder.parent)
    # .pth files in these folders, such as that of an editable install of this project, are not read.
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(paths)))
    return folder / "bin" / "python"


@pytest.fixture
def project(tmp_path: Path, pretrained: Path, few_shards: Path) -> Path:
    """A user's folder with the files that the pages name, and modules with the names of this project's folders."""
    for name in ("train.py", "eval.py", "extract.py"):
        (tmp_path / name).write_text("raise ImportError('not this one')\n")
    (tmp_path / "run").symlink_to(pretrained)
    (tmp_path / "shards").symlink_to(few_shards)
    for name, video in zip("ab", sorted((few_shards.parent / "videos").rglob("*.mp4")), strict=False):
        (tmp_path / f"{name}.mp4").symlink_to(video)
    return tmp_path


def python_snippets(page: str) -> list[str]:
    found: list[str] = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert found, page
    return found


@pytest.mark.parametrize("page", ["README.md", "docs/library.md"])
def test_snippets_run_as_written_with_the_wheel(page: str, fresh_python: Path, project: Path) -> None:
    checks = "assert features.dtype == 'float32'; assert 'site-packages' in cmd_eval.__file__, cmd_eval.__file__\n"
    script = project / "script.py"
    script.write_text("\n".join([*python_snippets(page), checks]))
    printed = run(
        fresh_python, script, cwd=project, OMP_NUM_THREADS="1", PYTHONWARNINGS="error::DeprecationWarning:__main__"
    )
    assert printed == ""


USER_SCRIPT = """
from typing import assert_type

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

import cmd_eval
import cmd_extract
import cmd_train

model = cmd_eval.load_model("run")
assert_type(model, cmd_eval.VideoModel)
assert_type(model.embed(["a.mp4"], readout="grid", progress=True), NDArray[np.float32])
shards = cmd_extract.open_shards("shards")
assert_type(shards.clip(0, 2, 8), NDArray[np.uint8])
assert_type(shards.motion("id").valid, NDArray[np.bool_])
for frame in cmd_extract.read_motion("a.mp4", vectors=True):
    assert_type(frame.frame_type, str)
    assert_type(frame.grid_quarter_px, NDArray[np.int16])
backbone = cmd_train.load_backbone("run")
module: nn.Module = backbone
output: cmd_train.BackboneOutput = backbone(Tensor())
assert_type(output.pooled_BC, Tensor)
dataset = cmd_train.ShardDataset("shards", part="test", clips=2)
assert_type(dataset[0]["label"], int)
model.embed(3)
"""


def test_types_pass_under_strict_mypy_for_users(fresh_python: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(USER_SCRIPT)
    if (ROOT / ".mypy_cache").is_dir():  # torch has been analyzed already
        shutil.copytree(ROOT / ".mypy_cache", tmp_path / ".mypy_cache")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(fresh_python), "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=SECONDS)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert 'Argument 1 to "embed" of "VideoModel" has incompatible type "int"' in errors[0]


def test_extras_match_the_optional_imports() -> None:
    extras = PROJECT["optional-dependencies"]
    modules_of = {
        "cluster": ("distributed", "extract"),
        "gpu": ("pynvml", "train"),
        "onnx": ("onnx", "train"),
        "parquet": ("pyarrow", "eval"),
        "tensorboard": ("torch.utils.tensorboard", "train"),
        "wandb": ("wandb", "train"),
        "mlflow": (r"mlflow\.tracking", "train"),
        "remote": ("fsspec", "extract"),
    }
    assert set(extras) == {*modules_of, "bench", "dev"}  # tests/benchmarks uses the former
    for extra, (module, package) in modules_of.items():
        texts = [path.read_text("utf-8") for path in (ROOT / package).rglob("*.py")]
        assert any(re.search(rf"(import|from) {module}\b|find_spec\(.{module}", text) for text in texts), (
            f"nothing in {package} uses {module}"
        )
        documents = [*texts, (ROOT / package / "README.md").read_text("utf-8")]
        assert any(f"pip install '.[{extra}]'" in text for text in documents), f"{extra} is not documented"


def test_oldest_constraints_match_the_lower_bounds() -> None:
    # pyarrow, too: new versions refuse the oldest numpy.
    runtime = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["parquet"]]
    tests = [Requirement(text) for text in PROJECT["optional-dependencies"]["dev"]]

    def oldest(name: str) -> Version:
        """Lower bound; tests may need a newer version than the packages."""
        bounds = [r for r in runtime + tests if r.name == name]
        return max(Version(part.version) for r in bounds for part in r.specifier if part.operator == ">=")

    wanted = {f"{r.name}=={oldest(r.name)}.*" for r in runtime if r.name != "torch"}
    lines = (ROOT / ".ci" / "constraints-oldest.txt").read_text("utf-8").splitlines()
    assert {line for line in lines if not line.startswith("#")} == wanted
