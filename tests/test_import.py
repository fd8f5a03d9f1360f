"""Importing jaxmeta stays light."""

import subprocess
import sys


def test_import_pulls_in_neither_tensorflow_nor_datasets_nor_plots():
    code = (
        "import sys, jaxmeta, jaxmeta.cli, jaxmeta.recipes, jaxmeta.plots\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'matplotlib', 'PIL', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_starts_no_jax_backend():
    """Or the command line could no longer turn cores into devices."""
    code = (
        "import jaxmeta.cli, jaxmeta.recipes\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
