"""Settings of the documentation: `python -m sphinx -W docs site`.

Notebooks are rendered as they are, without outputs; JAXMETA_RUN_NOTEBOOKS=1 runs them.
"""

import importlib.metadata
import os
import pathlib
import shutil

HERE = pathlib.Path(__file__).parent
# Sphinx wants its sources under one roof.
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", dirs_exist_ok=True)

project = "jaxmeta"
copyright = "the jaxmeta authors"
release = importlib.metadata.version("jaxmeta")
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
]
exclude_patterns = ["coming_from"]
html_theme = "furo"
html_title = "jaxmeta"
html_static_path = ["_static"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force" if os.environ.get("JAXMETA_RUN_NOTEBOOKS") else "off"
nb_execution_timeout = 900

default_role = "py:obj"  # `jaxmeta.maml` in a docstring is a link where it can be.
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "imported-members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
