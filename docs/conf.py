"""Settings of the documentation: `python -m sphinx -W docs site`.

Notebooks are rendered as they are, without outputs; JAXMETA_RUN_NOTEBOOKS=1 runs them.
"""

import importlib.metadata
import os
import pathlib
import shutil

from docutils import nodes
from sphinx.roles import XRefRole

import jaxmeta as jm

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
# Sphinx wants its sources under one roof, with links from there.
shutil.copytree(ROOT / "notebooks", HERE / "notebooks", dirs_exist_ok=True)
readme = (ROOT / "README.md").read_text()
for old, new in {
    "(benchmarks/README.md": "(benchmarks.md",
    "(docs/": "(",
    "(jaxmeta/": "(../jaxmeta/",
}.items():
    readme = readme.replace(old, new)
(HERE / "readme.txt").write_text(readme)

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
exclude_patterns = ["coming_from", "readme.txt"]
html_theme = "furo"
html_title = "jaxmeta"
html_static_path = ["_static"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force" if os.environ.get("JAXMETA_RUN_NOTEBOOKS") else "off"
nb_execution_timeout = 900

default_role = "name"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Where names that are at hand from the top are documented.
HOMES = {f"jaxmeta.{name}": f"jaxmeta.learners.{name}" for name in jm.learners.__all__}


def name(role, rawtext, text, lineno, inliner, options=None, content=()):
    """Code, and a link where it is a dotted name of the package."""
    del role, options, content
    if text.startswith("jaxmeta."):
        linked = f"`{text} <{HOMES.get(text, text)}>`"
        return XRefRole()("py:obj", linked, linked[1:-1], lineno, inliner)
    return [nodes.literal(rawtext, text)], []


def skip_fields(app, what, name, obj, skip, options):
    """Leaves out fields of NamedTuples that say nothing: their class tells of them."""
    del app, what, name, skip, options
    return (getattr(obj, "__doc__", "") or "").startswith("Alias for field") or None


def setup(app):
    """Adds the role that single backquotes stand for."""
    app.add_role("name", name)
    app.connect("autodoc-skip-member", skip_fields)
