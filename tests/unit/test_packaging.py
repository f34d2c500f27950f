"""What a user installs: light imports, one version, pinned dependencies, a complete wheel."""

from __future__ import annotations

import ast
import inspect
import os
import pickle
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import dinoprobe
from dinoprobe import errors

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "dinoprobe"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = ("torch", "transformers", "sklearn", "scipy", "pandas", "lance", "pyarrow", "datasets")
HEAVY += ("ray",)

needs_cli = pytest.mark.skipif(
    find_spec("dinoprobe.cli") is None, reason="dinoprobe.cli is not written yet"
)


def run_python(code: str) -> str:
    """Standard output of `code` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- imports ------------------------------------------------------------------------------------


def test_importing_the_package_loads_nothing_heavy():
    loaded = run_python(f"import sys, dinoprobe; print(*(m for m in {HEAVY} if m in sys.modules))")
    assert loaded.split() == []


@needs_cli
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["train", "--help"], ["predict", "--help"]]
)
def test_help_and_version_load_nothing_heavy(arguments):
    code = f"""
import contextlib, io, runpy, sys
sys.argv = ["dinoprobe", *{arguments}]
code = 0
with contextlib.redirect_stdout(io.StringIO()):
    try:
        runpy.run_module("dinoprobe", run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
print(code, *(m for m in {HEAVY} if m in sys.modules))
"""
    assert run_python(code).split() == ["0"]


@needs_cli
def test_the_console_script_is_installed():
    script = Path(sys.executable).with_name("dinoprobe.exe" if os.name == "nt" else "dinoprobe")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, dinoprobe.__version__ in done.stdout) == (0, True)


def test_no_module_changes_pillows_limit():
    # A library that raises or lifts PIL's guard does so for the whole process that imports it.
    code = """
import importlib, pkgutil
from PIL import Image
before = Image.MAX_IMAGE_PIXELS
import dinoprobe
for module in pkgutil.walk_packages(dinoprobe.__path__, "dinoprobe."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(before == Image.MAX_IMAGE_PIXELS is not None)
"""
    assert run_python(code).strip() == "True"


# --- version ------------------------------------------------------------------------------------


def test_one_version_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [dinoprobe.__version__]
    assert re.findall(r"^## \[(\d[^]]*)\]", changelog, re.MULTILINE)[0] == dinoprobe.__version__


# --- dependencies -------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    """Canonical name -> version, as constraints.txt pins them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def closure() -> dict[str, list[Requirement]]:
    """Canonical name -> the requirements on it, for all that `dinoprobe[dev]` needs here."""
    extras = PROJECT["optional-dependencies"]
    waiting = [
        Requirement(text)
        for text in (*PROJECT["dependencies"], *chain.from_iterable(extras.values()))
    ]
    found: dict[str, list[Requirement]] = {}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name == "dinoprobe" or str(requirement) in map(str, found.get(name, [])):
            continue
        found.setdefault(name, []).append(requirement)
        waiting += _needed_by(requirement)
    return found


def _needed_by(requirement: Requirement) -> list[Requirement]:
    try:
        texts = requires(requirement.name) or []
    except PackageNotFoundError:
        pytest.fail(
            f"{requirement.name} is declared in pyproject.toml and not installed: run make test"
        )
    candidates = [Requirement(text) for text in texts]
    environments = [{"extra": extra} for extra in (*requirement.extras, "")]
    return [r for r in candidates if r.marker is None or any(map(r.marker.evaluate, environments))]


def test_every_dependency_is_pinned_within_its_range():
    pinned = pins()
    for name, requirements in closure().items():
        assert name in pinned, f"{name} is not in constraints.txt: run make constraints"
        for requirement in requirements:
            assert requirement.specifier.contains(pinned[name], prereleases=True), requirement


def test_the_pins_hold_on_every_platform():
    pinned = pins()
    assert pinned["torch"] == "2.13.0"
    assert [name for name, pin in pinned.items() if Version(pin).local] == []
    forbidden = re.compile(r"nvidia|cuda|triton|torchvision|torchaudio|timm")
    assert list(filter(forbidden.match, pinned)) == []


def test_the_source_imports_only_what_is_declared():
    distributions = packages_distributions()
    extras = PROJECT["optional-dependencies"]
    declared = [
        *PROJECT["dependencies"],
        *(text for name in extras if name != "dev" for text in extras[name]),
    ]
    known = {canonicalize_name(Requirement(text).name) for text in declared} | {"dinoprobe"}
    for module, path in sorted(_imported_modules().items()):
        names = {canonicalize_name(name) for name in distributions.get(module, [module])}
        assert names & known, f"{path} imports {module}, which pyproject.toml does not declare"


def _imported_modules() -> dict[str, Path]:
    """Top-level module -> a file that imports it, without the standard library."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0]: path for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found[node.module.partition(".")[0]] = path
    return {module: path for module, path in found.items() if module not in sys.stdlib_module_names}


def test_the_pinned_versions_are_installed():
    # Otherwise the suite says nothing about the versions that `make demo` gives to a user.
    pinned = pins()
    wrong = {
        name: (version(name), pinned[name])
        for name in closure()
        if Version(version(name)).public != pinned[name]
    }
    assert wrong == {}


# --- errors -------------------------------------------------------------------------------------


def error_classes() -> list[type[errors.DinoprobeError]]:
    """Every class of the tree, in the order of the file."""
    found = [value for value in vars(errors).values() if inspect.isclass(value)]
    return [value for value in found if issubclass(value, errors.DinoprobeError)]


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
def test_every_error_pickles(kind):
    arguments = ["photos/7.jpg: found this. Expected that."]
    if inspect.isfunction(kind.__init__):  # it takes more than a message
        arguments = list(inspect.signature(kind).parameters)
    error = kind(*arguments)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert issubclass(kind, errors.DinoprobeError)


# --- the wheel ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory) -> set[str]:
    """The names in a wheel that is built from this checkout, without isolation and so offline."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_file_of_the_package(wheel_names):
    files = {
        path.relative_to(SOURCE.parent).as_posix() for path in SOURCE.rglob("*") if path.is_file()
    }
    assert {name for name in files if "__pycache__" not in name} <= wheel_names


def test_the_wheel_holds_the_marker_of_its_types_and_its_licence(wheel_names):
    assert "dinoprobe/py.typed" in wheel_names
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)


@needs_cli
@pytest.mark.parametrize(
    "pattern",
    [r"dinoprobe/encoder/builtin.*\.safetensors", r"dinoprobe/report/.*\.(html|j2|jinja2?)"],
)
def test_the_wheel_holds_the_weights_and_the_templates(wheel_names, pattern):
    assert any(re.fullmatch(pattern, name) for name in wheel_names)


def test_the_wheel_holds_nothing_else(wheel_names):
    version_folder = f"dinoprobe-{dinoprobe.__version__}.dist-info/"
    assert [
        name for name in wheel_names if not name.startswith(("dinoprobe/", version_folder))
    ] == []
