"""The API reference: a page for every module, nothing that pdoc warns of, no link that leads nowhere."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from parity_tests.programs import ROOT

pytest.importorskip("pdoc", reason="pdoc isn't installed: pip install -e '.[docs]'")

PACKAGES = [name for name in ("jaxgpt", "torch_ref", "benchmarks", "launch") if (ROOT / name / "__init__.py").exists()]
MODULES = [
    path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")) if path.name != "__init__.py"
]


def api(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """The program, with the packages in `folder` beside the project's."""
    here = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(ROOT / "docs" / "api.py"), "--out", str(folder / "api"), *words]
    return subprocess.run(command, env=here, cwd=folder, capture_output=True, text=True, timeout=170)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    ended = api(folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    return folder / "api"


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_function_and_class_is_on_its_page(site, module):
    page = (site / module.relative_to(ROOT).with_suffix(".html")).read_text(encoding="utf-8")
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = [e.name for e in ast.parse(module.read_text(encoding="utf-8")).body if isinstance(e, kinds)]
    assert [name for name in names if not name.startswith("_") and f'id="{name}"' not in page] == []


@pytest.mark.slow
def test_no_link_leads_nowhere(site):
    lost = []
    for page in site.rglob("*.html"):
        for link in re.findall(r'href="([^"#:$]+)(?:#[^"]*)?"', page.read_text(encoding="utf-8")):
            if not (page.parent / link).exists():
                lost.append((str(page.relative_to(site)), link))
    assert lost == []


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site):
    loads = r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"'
    assert [
        found for page in site.rglob("*.html") for found in re.findall(loads, page.read_text(encoding="utf-8"))
    ] == []


def test_an_annotation_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "broken.py").write_text('"""Broken."""\n\n\ndef f(x: "Nowhere"):\n    """F."""\n', encoding="utf-8")
    ended = api(tmp_path, "--packages", "broken")
    assert (ended.returncode, "broken.f" in ended.stderr) == (1, True)


def test_a_package_that_is_not_there_is_one_line(tmp_path):
    ended = api(tmp_path, "--packages", "nowhere")
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: --packages nowhere: there is no such package; install it, or mend its name\n",
    )
