"""Sphinx builds the site from here; tutorial pages run when it is built."""

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent
DATA = Path(os.environ.get("COUNTVAE_DATA", HERE.parent.parent / "shared" / "data")).resolve()
# pages call the program that is being documented, on the shared tables
os.environ["COUNTVAE_DATA"] = str(DATA)
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

project = "countvae"
author = "The countvae developers"
copyright = "2026, The countvae developers"
version = release = installed_version("countvae")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = "countvae"

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 2
nb_execution_mode = "force" if DATA.is_dir() else "off"  # without the tables pages show no results
nb_execution_raise_on_error = True
nb_execution_timeout = 300

napoleon_google_docstring = False
napoleon_use_rtype = False
autosummary_generate = True
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"
# The letters of a shape, (n, d), are no references.
suppress_warnings = ["ref.python"]
