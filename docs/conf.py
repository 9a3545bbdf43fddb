# Sphinx's settings: `make docs` builds the pages in this folder, and the API from the docstrings.

import os

import torchgil

project = "torchgil"
release = version = torchgil.__version__
project_copyright = "the torchgil developers"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["build"]
myst_heading_anchors = 3
myst_enable_extensions = ["html_image"]
suppress_warnings = ["misc.highlighting_failure"]  # a snippet of torchgil's own words behind a language

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_default_options = {"members": True, "undoc-members": True}
napoleon_google_docstring = True
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"torchgil {version}"
html_static_path: list[str] = []
html_theme_options = {"navigation_with_keys": True}
if os.environ.get("TORCHGIL_DOCS_SOURCE"):  # where the sources can be read, if that is to be linked
    html_theme_options["source_repository"] = os.environ["TORCHGIL_DOCS_SOURCE"]
