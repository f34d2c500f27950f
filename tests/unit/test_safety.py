"""The source runs no code that arrives as data: no pickle, eval, remote code, raw extraction.

It reads the syntax tree, so comments and docstrings may name what is forbidden. One file may open a
pickle, Meta's, and only by a call that says weights_only=True in so many words.
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
UNPICKLING_FILE = "encoder/pth.py"
UNPICKLING = {"torch.load", "torch.serialization.load"}  # called, or only handed on
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__",
    "torch.hub.load", "torch.jit.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen",
    "pandas.read_pickle", "pd.read_pickle",
}  # fmt: skip
UNSAFE_METHODS = {"extractall", "add_safe_globals", "safe_globals"}
UNSAFE_ARGUMENTS = {"allow_pickle", "trust_remote_code", "shell"}


def violations(source: str, *, may_unpickle: bool = False) -> list[str]:
    """What in `source` could run code that a file or a server brought, one line each.

    With `may_unpickle`, `torch.load` passes where it is restricted to weights.
    """
    nodes = list(ast.walk(ast.parse(source)))
    allowed = {id(node.func) for node in nodes if may_unpickle and _is_restricted_load(node)}
    return [
        f"line {node.lineno}: {what}"
        for node in nodes
        if id(node) not in allowed
        for what in _found(node)
    ]


def _is_restricted_load(node: ast.AST) -> bool:
    """A call of torch.load with a literal weights_only=True, and nothing that could undo it."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func) != "torch.load":
        return False
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    restricted = given.get("weights_only")
    literal = isinstance(restricted, ast.Constant) and restricted.value is True
    positional = len(node.args) == 1 and not isinstance(node.args[0], ast.Starred)
    return literal and positional and given.keys() <= {"weights_only", "map_location", "mmap"}


def _found(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [f"import {alias.name}" for alias in node.names if _is_unsafe_import(alias)]
    if isinstance(node, ast.ImportFrom):
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        unsafe = names & (UNSAFE_CALLS | UNPICKLING)
        unsafe |= {name for name in names if name.split(".")[-1] in UNSAFE_METHODS}
        found = unsafe or _top(node.module or "") in UNSAFE_MODULES
        return [f"from {node.module} import"] if found else []
    if isinstance(node, ast.Attribute) and ast.unparse(node) in UNPICKLING:
        return [ast.unparse(node)]
    return _unsafe_call(node) if isinstance(node, ast.Call) else []


def _is_unsafe_import(alias: ast.alias) -> bool:
    """A module that unpickles, or torch under a name that hides its load."""
    renamed = alias.name in {"torch", "torch.serialization"} and alias.asname is not None
    return renamed or _top(alias.name) in UNSAFE_MODULES


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
    may_unpickle = path == SOURCE / UNPICKLING_FILE
    assert violations(path.read_text(encoding="utf-8"), may_unpickle=may_unpickle) == []


def test_one_call_in_one_file_unpickles():
    source = (SOURCE / UNPICKLING_FILE).read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(source)) if _is_restricted_load(node)]
    assert [violation.partition(": ")[2] for violation in violations(source)] == ["torch.load"]
    assert len(calls) == 1


def test_restricted_unpickling_passes_where_it_is_allowed():
    call = "torch.load(path, map_location='cpu', weights_only=True, mmap=True)"
    assert violations(call, may_unpickle=True) == []
    assert len(violations(call)) == 1


@pytest.mark.parametrize(
    "snippet",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=1)",
        "torch.load(path, weights_only=restricted)",
        "torch.load(path, None, None, weights_only=True)",
        "torch.load(*paths, weights_only=True)",
        "torch.load(path, weights_only=True, **options)",
        "torch.load(path, weights_only=True, pickle_module=other)",
        "torch.load(path, weights_only=True) or torch.load(path)",
        "load = torch.load",
        "torch.serialization.load(path, weights_only=True)",
        "torch.serialization.add_safe_globals([Anything])",
        "import pickle",
    ],
)
def test_unrestricted_unpickling_passes_nowhere(snippet):
    assert len(violations(snippet, may_unpickle=True)) == 1


@pytest.mark.parametrize(
    "snippet",
    [
        "import pickle",
        "import torch\ntorch.load(path)",
        "torch.load(path, weights_only=True)",
        "read = functools.partial(torch.load, weights_only=True)",
        "from torch import load",
        "from torch.serialization import load",
        "from torch.serialization import safe_globals",
        "import torch as t",
        "torch.jit.load(path)",
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
        "import torch",
        "from torch import nn",
        "re.compile(pattern)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
    ],
)
def test_what_is_harmless_passes(snippet):
    assert violations(snippet) == []


def test_there_is_source_to_read():
    assert (SOURCE / "errors.py").is_file()
