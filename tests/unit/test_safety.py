"""The source runs no code that arrives as data: no pickle, eval, remote code, raw extraction.

It reads the syntax tree, so comments and docstrings may name what is forbidden.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "dinoprobe"
UNSAFE_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
}
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__",
    "torch.load", "torch.hub.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen",
    "pandas.read_pickle", "pd.read_pickle",
}  # fmt: skip
UNSAFE_METHODS = {"extractall"}
UNSAFE_ARGUMENTS = {"allow_pickle", "trust_remote_code", "shell"}


def violations(source: str) -> list[str]:
    """What in `source` could run code that a file or a server brought, one line each."""
    return [
        f"line {node.lineno}: {what}"
        for node in ast.walk(ast.parse(source))
        for what in _found(node)
    ]


def _found(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [
            f"import {alias.name}" for alias in node.names if _top(alias.name) in UNSAFE_MODULES
        ]
    if isinstance(node, ast.ImportFrom):
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        unsafe = _top(node.module or "") in UNSAFE_MODULES or names & UNSAFE_CALLS
        return [f"from {node.module} import"] if unsafe else []
    return _unsafe_call(node) if isinstance(node, ast.Call) else []


def _unsafe_call(call: ast.Call) -> list[str]:
    name = ast.unparse(call.func)
    found = [f"{name}()"] if name in UNSAFE_CALLS or name.split(".")[-1] in UNSAFE_METHODS else []
    for keyword in call.keywords:
        is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg in UNSAFE_ARGUMENTS and not is_false:
            found.append(f"{name}({keyword.arg}=...)")
    return found


def _top(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_the_source_runs_no_foreign_code(path):
    assert violations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "snippet",
    [
        "import pickle",
        "import torch\ntorch.load(path)",
        "torch.load(path, weights_only=True)",
        "from torch import load",
        "from joblib import Parallel",
        "import dill as d",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "def f():\n    return eval(text)",
        "exec(text)",
        "tarfile.open(path).extractall(folder)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_each_danger_is_seen(snippet):
    assert len(violations(snippet)) == 1


@pytest.mark.parametrize(
    "snippet",
    [
        "model.eval()",
        "'pickle'",
        "np.load(path, allow_pickle=False)",
        "head.load(path)",
        "re.compile(pattern)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
    ],
)
def test_what_is_harmless_passes(snippet):
    assert violations(snippet) == []


def test_there_is_source_to_read():
    assert (SOURCE / "errors.py").is_file()
