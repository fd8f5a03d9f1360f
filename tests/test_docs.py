"""The documentation builds, names everything public, and its code runs."""

import importlib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    page.name for page in DOCS.glob("*.md") if "```python\n" in page.read_text()
)
# What the page about coming from elsewhere says that each program prints.
PRINTED = "8.573 17.960"
MODULES = (
    "base",
    "estimators",
    "learners",
    "losses",
    "models",
    "optimizers",
    "plots",
    "recipes",
    "report",
    "rl",
    "tasks",
    "testing",
    "training",
)


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S):
        exec(block, names)


def _run(program, python=sys.executable):
    done = subprocess.run(
        [python, program],
        cwd=DOCS / "coming_from",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (DOCS / "coming_from").glob("*_*.py"))
)
def test_programs_of_the_migration_page_print_the_same(name):
    """Those of PyTorch run where it is: JAXMETA_TORCH_PYTHON names that Python."""
    assert f"`{PRINTED}`" in (DOCS / "coming_from.md").read_text()
    python = sys.executable
    if name in ("theirs_higher", "theirs_learn2learn"):
        python = os.environ.get("JAXMETA_TORCH_PYTHON")
        if python is None:
            pytest.skip("JAXMETA_TORCH_PYTHON names no Python with PyTorch's libraries")
    assert _run(f"{name}.py", python) == PRINTED


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_nb")
    site = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"]
    done = subprocess.run([*build, DOCS, site], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return site


def test_the_reference_has_every_public_name(site):
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", os.path.join)
    kinds = getattr(inventory, "data", inventory)  # Of Sphinx 9, and before.
    named = {
        name
        for kind, entries in kinds.items()
        if kind.startswith("py:")
        for name in entries
    }
    public = set()
    for module_name in MODULES:
        module = importlib.import_module(f"jaxmeta.{module_name}")
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__
            and not name.startswith("_")
        ]
        public |= {f"jaxmeta.{module_name}.{name}" for name in names}
    assert len(public) > 150
    assert sorted(public - named) == []


def test_pages_have_what_they_include(site):
    for page, text in {
        "index": "a few copies of the parameters",
        "choosing": "choose it for",
        "results": "97.65 ± 0.05 %",
        "command_line": "--coordinator",
        "benchmarks": "matrix product",
        "notebooks/01_quickstart": "One wave, step by step",
    }.items():
        assert text in (site / f"{page}.html").read_text(), page
