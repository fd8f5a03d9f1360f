"""Importing jaxmeta stays light, and shows what is public."""

import importlib
import subprocess
import sys
import types

import pytest


def test_import_pulls_in_neither_tensorflow_nor_datasets_nor_plots():
    code = (
        "import sys, jaxmeta, jaxmeta.cli, jaxmeta.recipes, jaxmeta.runs\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'matplotlib', 'PIL', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_starts_no_jax_backend():
    """Or the command line could no longer turn cores into devices."""
    code = (
        "import jaxmeta.cli, jaxmeta.recipes, jaxmeta.runs\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


PACKAGES = (
    "estimators",
    "learners",
    "models",
    "optimizers",
    "plots",
    "problems",
    "recipes",
    "rl",
    "runs",
    "tasks",
    "training",
)


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_list_their_public_names(name):
    package = importlib.import_module(f"jaxmeta.{name}")
    public = {
        key
        for key, value in vars(package).items()
        if not key.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(package.__all__)
