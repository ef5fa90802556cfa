"""Sphinx configuration: ``make docs``, warnings are errors."""

import importlib.metadata

project = "subspan"
author = "the subspan contributors"
version = release = importlib.metadata.version("subspan")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
nitpicky = True

html_theme = "furo"
html_title = f"subspan {release}"
html_show_copyright = False
html_show_sphinx = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Single backticks in docstrings are code, double ones too; links are made by :func: and the like.
default_role = "code"
smartquotes = False  # "auto" is a string to type
autodoc_member_order = "bysource"
# Shapes, dtypes and ranges stand in the docstrings; annotations would say `Any` beside them.
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
napoleon_google_docstring = False
# "array (n, d)" or "int, optional" are descriptions, not classes to link to.
napoleon_use_param = False
napoleon_use_rtype = False
# One entry may name several exceptions, which share one explanation.
napoleon_custom_sections = [("Raises", "params_style"), ("Attributes", "params_style")]
