"""No file's content is ever executed: the calls that could do it stand nowhere in what reads files."""

import ast
from pathlib import Path

import pytest

from parity_tests.programs import ROOT

READERS = sorted(path for room in ("jaxgpt", "torch_ref", "benchmarks") for path in (ROOT / room).rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code", "runpy", "yaml"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
LOADERS = {"load", "loads", "read_pickle", "load_module", "exec_module", "import_module", "system", "popen"}
HARMLESS = {("json", "loads"), ("json", "load"), ("triton", "load")}


def executing(source: str) -> list[str]:
    """What in it could execute what a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        found += [f"import {name}" for name in names if name.split(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            found += _executing_call(node)
    return found


def _executing_call(call: ast.Call) -> list[str]:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    bad = [f"{name}={given[name]}" for name in ("shell", "allow_pickle") if given.get(name, "False") != "False"]
    if isinstance(call.func, ast.Name) and call.func.id in BUILTINS:
        bad.append(call.func.id)
    if isinstance(call.func, ast.Attribute) and call.func.attr in LOADERS:
        owner = ast.unparse(call.func.value)
        safe = (owner, call.func.attr) in HARMLESS or given.get("weights_only") == "True"
        if not safe and (owner, call.func.attr) not in {
            ("np", "load"),
            ("numpy", "load"),
        }:  # refuses pickles by default
            bad.append(f"{owner}.{call.func.attr}")
    return bad


@pytest.mark.parametrize("path", READERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_executes_what_a_file_holds(path: Path):
    assert executing(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "yaml.load(text)",
        "subprocess.run(text, shell=True)",
        "importlib.import_module(text)",
        "os.system(text)",
    ],
)
def test_line_that_executes_a_file_is_found(line):
    assert executing(line) != []


@pytest.mark.parametrize(
    "line", ["torch.load(path, weights_only=True)", "json.loads(text)", "np.load(path)", "re.compile(text)"]
)
def test_line_that_executes_nothing_is_not_found(line):
    assert executing(line) == []
